"""Draw pictures with a trained run: `python sample.py RUN --prompt "red apple"`; `--help` lists the flags."""

import sys

from ldm_jax import cli
from ldm_jax.huge_pages import use_huge_pages

if __name__ == "__main__":
    use_huge_pages()
    sys.exit(cli.run(cli.sample, sys.argv[1:]))
