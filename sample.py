"""Draw pictures with a trained run: `python sample.py RUN --prompt "red apple"`; `--help` lists the flags."""

import sys

from ldm_jax import cli
from ldm_jax.allocator import tune_allocator

if __name__ == "__main__":
    tune_allocator()
    sys.exit(cli.run(cli.sample, sys.argv[1:]))
