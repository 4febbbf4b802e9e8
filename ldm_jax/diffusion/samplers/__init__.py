"""Samplers: one file each, one interface (`sampler.py`), one table of names (`make.py`).

`make_sampler` is the door; the factories (`ddim.ddim`, `unipc.unipc`, ...) give access to every option.
"""

from ldm_jax.diffusion.samplers.grid import Grid, inverse_grid, schedule_grid
from ldm_jax.diffusion.samplers.make import SAMPLERS, make_inversion, make_sampler
from ldm_jax.diffusion.samplers.sampler import Sampler, Start, initial_noise, sample, sample_from, sample_trajectory
from ldm_jax.diffusion.samplers.times import Times, spaced_times

__all__ = [
    "SAMPLERS",
    "Grid",
    "Sampler",
    "Start",
    "Times",
    "initial_noise",
    "inverse_grid",
    "make_inversion",
    "make_sampler",
    "sample",
    "sample_from",
    "sample_trajectory",
    "schedule_grid",
    "spaced_times",
]
