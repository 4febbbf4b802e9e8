"""The table of samplers, and the way from a configuration to one of them."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ldm_jax.config import PredictionType, SamplingConfig
from ldm_jax.diffusion.samplers.adaptive import adaptive
from ldm_jax.diffusion.samplers.ddim import ddim
from ldm_jax.diffusion.samplers.ddpm import ddpm
from ldm_jax.diffusion.samplers.deis import deis
from ldm_jax.diffusion.samplers.dpm_singlestep import dpm_solver_singlestep
from ldm_jax.diffusion.samplers.dpm_solver import dpm_solver
from ldm_jax.diffusion.samplers.estimate import Clipping
from ldm_jax.diffusion.samplers.euler import euler, euler_ancestral
from ldm_jax.diffusion.samplers.grid import Grid, inverse_grid, schedule_grid
from ldm_jax.diffusion.samplers.heun import Churn, heun
from ldm_jax.diffusion.samplers.kdpm2 import kdpm2, kdpm2_ancestral
from ldm_jax.diffusion.samplers.lms import lms
from ldm_jax.diffusion.samplers.pndm import plms, plms_calls, pndm, pndm_calls
from ldm_jax.diffusion.samplers.rk4 import rk4
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.diffusion.samplers.sigmas import respaced
from ldm_jax.diffusion.samplers.times import Times, spaced_times
from ldm_jax.diffusion.samplers.unipc import unipc
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import UserError

Build: TypeAlias = Callable[[SamplingConfig, Grid, PredictionType, Clipping], Sampler]

SDE = "sde-dpmsolver++"

SAMPLERS: dict[str, Build] = {
    "ddim": lambda c, grid, kind, clip: ddim(grid, kind, eta=c.eta, clipping=clip),
    "ddpm": lambda c, grid, kind, clip: ddpm(grid, kind, clipping=clip),
    "plms": lambda c, grid, kind, clip: plms(plms_calls(grid), kind),
    "pndm": lambda c, grid, kind, clip: pndm(grid, kind),
    "euler": lambda c, grid, kind, clip: euler(grid, kind, clipping=clip),
    "euler_ancestral": lambda c, grid, kind, clip: euler_ancestral(grid, kind, clipping=clip),
    "heun": lambda c, grid, kind, clip: heun(grid, kind, clipping=clip, churn=Churn(c.churn)),
    "kdpm2": lambda c, grid, kind, clip: kdpm2(grid, kind, clipping=clip),
    "kdpm2_ancestral": lambda c, grid, kind, clip: kdpm2_ancestral(grid, kind, clipping=clip),
    "lms": lambda c, grid, kind, clip: lms(grid, kind, clipping=clip),
    "dpmpp_2m": lambda c, grid, kind, clip: dpm_solver(grid, kind, clipping=clip),
    "dpmpp_3m": lambda c, grid, kind, clip: dpm_solver(grid, kind, order=3, clipping=clip),
    "dpmpp_2m_sde": lambda c, grid, kind, clip: dpm_solver(grid, kind, algorithm=SDE, clipping=clip),
    "dpmpp_2s": lambda c, grid, kind, clip: dpm_solver_singlestep(grid, kind, clipping=clip),
    "dpmpp_3s": lambda c, grid, kind, clip: dpm_solver_singlestep(grid, kind, order=3, clipping=clip),
    "unipc": lambda c, grid, kind, clip: unipc(grid, kind, clipping=clip),
    "unipc_1": lambda c, grid, kind, clip: unipc(grid, kind, order=1, clipping=clip),
    "unipc_3": lambda c, grid, kind, clip: unipc(grid, kind, order=3, clipping=clip),
    "deis": lambda c, grid, kind, clip: deis(grid, kind, order=3, clipping=clip),
    "rk4": lambda c, grid, kind, clip: rk4(grid, kind, clipping=clip),
    "adaptive": lambda c, grid, kind, clip: adaptive(grid, kind, rtol=c.tolerance, atol=c.tolerance, clipping=clip),
}
"""Every sampler by its name in `SamplingConfig.sampler`."""


def make_sampler(
    config: SamplingConfig,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    *,
    learned_variance: bool = False,
    skip: int = 0,
    first: int | None = None,
) -> Sampler:
    """The sampler that a configuration names, over a grid that ends at clean data; of them ddpm takes a variance that
    the denoiser has learned.

    Call it on the host, not under `jax.jit`: it computes its coefficients in NumPy.

    Args:
        config: solver, number of steps and where they lie.
        schedule: the forward process.
        prediction_type: what the denoiser predicts.
        learned_variance: whether the denoiser has learned a variance.
        skip: steps of the grid that are left out at its noisy end; what is left starts at its own `start`.
        first: the timestep from which all steps lie, instead of the schedule's last.

    Raises:
        UserError: more steps than training timesteps, a choice the sampler refuses, or `imported`, which is none here.
    """
    if config.sampler not in SAMPLERS:
        raise UserError(
            f"sampler={config.sampler} is the scheduler of a model of another system, which came without one; use one "
            f"of {', '.join(SAMPLERS)}"
        )
    total, spacing = schedule.num_train_timesteps, config.spacing
    if first is not None:
        total, spacing = first + 1, "trailing"
    times = spaced_times(total, config.num_sample_steps, spacing)
    clipping = Clipping(config.clipping, config.clip_range, config.clip_percentile)
    grid = _grid(config, schedule, times, skip)
    if config.sampler == "ddpm" and learned_variance:
        return ddpm(grid, prediction_type, variance="learned", clipping=clipping)
    return SAMPLERS[config.sampler](config, grid, prediction_type, clipping)


def make_inversion(
    config: SamplingConfig, schedule: NoiseSchedule, prediction_type: PredictionType, *, skip: int = 0
) -> Sampler:
    """DDIM inversion, from clean data to where `make_sampler` with the same `skip` starts: the way back of DDIM.

    Raises:
        UserError: the denoiser predicts x0, of which nothing follows where there is no noise yet.
    """
    if prediction_type == "x0":
        raise UserError(
            "prediction_type=x0 cannot be inverted: at clean data it says nothing about the noise; use a model that "
            "predicts epsilon, v or flow"
        )
    times = spaced_times(schedule.num_train_timesteps, config.num_sample_steps, config.spacing)
    grid = _grid(dataclasses.replace(config, sampler="ddim"), schedule, times, skip)
    return ddim(inverse_grid(grid), prediction_type)


def _grid(config: SamplingConfig, schedule: NoiseSchedule, times: Times, skip: int) -> Grid:
    if config.sampler in ("plms", "pndm") and (config.sigmas != "schedule" or config.clipping != "none"):
        raise UserError(
            f"sampler={config.sampler} steps through training timesteps and does not clip; use sigmas=schedule, not "
            f"{config.sigmas}, and clipping=none, not {config.clipping}"
        )
    if config.sampler == "pndm":
        return pndm_calls(schedule, Times(times.t[skip:], times.t_next[skip:]))
    grid = respaced(schedule_grid(schedule, times), config.sigmas)
    return grid.take(np.arange(skip, grid.num_steps))
