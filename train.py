"""Train an experiment: `python train.py [NAME] [--flags]`; `--help` lists experiments and flags."""

import sys

from ldm_jax import cli

if __name__ == "__main__":
    sys.exit(cli.run(cli.train, sys.argv[1:]))
