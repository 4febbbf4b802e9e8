"""Train an experiment: `python train.py [NAME] [--flags]`; `--help` lists experiments and flags."""

import sys

from ldm_jax import cli
from ldm_jax.huge_pages import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    sys.exit(cli.run(cli.train, sys.argv[1:]))
