"""Train an experiment: `python train.py [NAME] [--flags]`; `--help` lists experiments and flags."""

import sys

from ldm_jax import cli
from ldm_jax.allocator import tune_allocator

if __name__ == "__main__":
    tune_allocator()
    sys.exit(cli.run(cli.train, sys.argv[1:]))
