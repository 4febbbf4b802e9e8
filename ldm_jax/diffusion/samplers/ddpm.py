"""DDPM's ancestral sampling, with any number of steps.

(1) z_s ~ q(z_s | z_t, z_0 = the estimate), the posterior of the forward process between the two timesteps
    Ho et al. 2020, arXiv:2006.11239, algorithm 2 with the smaller of its two variances (section 3.2)
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.process import posterior_weights
from ldm_jax.diffusion.samplers.estimate import estimate, require_signal
from ldm_jax.diffusion.samplers.sampler import Column, Latent, OneStepState, Predict, Sampler, columns
from ldm_jax.diffusion.samplers.times import Times, levels
from ldm_jax.diffusion.schedule import NoiseSchedule


class DdpmRows(NamedTuple):
    """From noise level (alpha, sigma) at t to z_s = z0_weight z_0 + zt_weight z_t + std noise (1)."""

    t: Column
    alpha: Column
    sigma: Column
    z0_weight: Column
    zt_weight: Column
    std: Column


def ddpm(
    schedule: NoiseSchedule, prediction_type: PredictionType, times: Times, *, clip_x0: float | None = None
) -> Sampler:
    """Ancestral sampling (1) over the given times.

    Args:
        schedule: the schedule the denoiser was trained with.
        prediction_type: what the denoiser predicts.
        times: what `spaced_times` returns.
        clip_x0: bound of the estimated z_0, for models of bounded data; None leaves it as it is.

    Raises:
        UserError: epsilon is predicted where there is no signal.
    """
    alpha, sigma = levels(schedule, times.t)
    require_signal(prediction_type, alpha)
    z0_weight, zt_weight, variance = posterior_weights(alpha, sigma, *levels(schedule, times.t_next))
    rows = DdpmRows(*columns(times.t, alpha, sigma, z0_weight, zt_weight, np.sqrt(variance)))
    return Sampler(rows, OneStepState, _make_step(prediction_type, clip_x0), stochastic=True)


@functools.cache
def _make_step(prediction_type: PredictionType, clip_x0: float | None) -> Callable[..., OneStepState]:
    def step(predict: Predict, state: OneStepState, row: DdpmRows, noise: Latent) -> OneStepState:
        prediction = predict(state.z, row.t)
        x0, _ = estimate(prediction_type, clip_x0, prediction, state.z, row.alpha, row.sigma)
        return OneStepState(row.z0_weight * x0 + row.zt_weight * state.z + row.std * noise)  # (1)

    return step
