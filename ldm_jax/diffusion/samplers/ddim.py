"""DDIM, from deterministic (eta = 0) to ancestral (eta = 1).

(1) z_s = alpha_s z_0 + sqrt(sigma_s^2 - std^2) epsilon + std noise        Song et al. 2020, arXiv:2010.02502, eq. 12
(2) std = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2)          the same, eq. 16
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
from ldm_jax.errors import UserError


class DdimRows(NamedTuple):
    """From noise level (alpha, sigma) at t to z_s = alpha_next z_0 + direction epsilon + std noise (1)."""

    t: Column
    alpha: Column
    sigma: Column
    alpha_next: Column
    direction: Column
    std: Column


def ddim(
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    times: Times,
    *,
    eta: float = 0.0,
    clip_x0: float | None = None,
) -> Sampler:
    """DDIM (1) over the given times.

    Args:
        schedule: the schedule the denoiser was trained with.
        prediction_type: what the denoiser predicts.
        times: what `spaced_times` returns.
        eta: share of fresh noise (2), 0 to 1.
        clip_x0: bound of the estimated z_0, for models of bounded data; None leaves it as it is.

    Raises:
        UserError: eta is not in [0, 1], or epsilon is predicted where there is no signal.
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta={eta} must lie between 0 (deterministic) and 1 (ancestral)")
    alpha, sigma = levels(schedule, times.t)
    alpha_next, sigma_next = levels(schedule, times.t_next)
    require_signal(prediction_type, alpha)
    *_, variance = posterior_weights(alpha, sigma, alpha_next, sigma_next)
    variance = eta**2 * variance  # (2), squared; never above sigma_next^2, not even by rounding
    direction, std = np.sqrt(sigma_next**2 - variance), np.sqrt(variance)
    rows = DdimRows(*columns(times.t, alpha, sigma, alpha_next, direction, std))
    return Sampler(rows, OneStepState, _make_step(prediction_type, clip_x0), stochastic=eta > 0)


@functools.cache
def _make_step(prediction_type: PredictionType, clip_x0: float | None) -> Callable[..., OneStepState]:
    def step(predict: Predict, state: OneStepState, row: DdimRows, noise: Latent) -> OneStepState:
        prediction = predict(state.z, row.t)
        x0, epsilon = estimate(prediction_type, clip_x0, prediction, state.z, row.alpha, row.sigma)
        return OneStepState(row.alpha_next * x0 + row.direction * epsilon + row.std * noise)  # (1)

    return step
