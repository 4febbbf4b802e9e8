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
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping, check_clipping, estimate
from ldm_jax.diffusion.samplers.grid import Grid, require_signal
from ldm_jax.diffusion.samplers.sampler import Column, Latent, OneStepState, Predict, Sampler, columns, start_of
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
    grid: Grid,
    prediction_type: PredictionType,
    *,
    eta: float = 0.0,
    clipping: Clipping = NO_CLIPPING,
    epsilon_follows: bool = True,
) -> Sampler:
    """DDIM (1) over the given grid; over the `inverse_grid` it is DDIM inversion, from data to noise.

    Args:
        grid: times and noise levels, of any path.
        prediction_type: what the denoiser predicts.
        eta: share of fresh noise (2), 0 to 1.
        clipping: bounds of the estimated z_0, for models of bounded data.
        epsilon_follows: whether epsilon is taken from the clipped z_0, or as the denoiser predicts it.

    Raises:
        UserError: eta is not in [0, 1], or epsilon is predicted where there is no signal.
    """
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta={eta} must lie between 0 (deterministic) and 1 (ancestral)")
    check_clipping(clipping)
    require_signal(prediction_type, grid.alpha)
    variance = np.zeros_like(grid.sigma)
    if eta > 0.0:
        *_, variance = posterior_weights(grid.alpha, grid.sigma, grid.alpha_next, grid.sigma_next)
        variance = eta**2 * variance  # (2), squared; never above sigma_next^2, not even by rounding
    direction, std = np.sqrt(grid.sigma_next**2 - variance), np.sqrt(variance)
    rows = DdimRows(*columns(grid.t, grid.alpha, grid.sigma, grid.alpha_next, direction, std))
    step = _make_step(prediction_type, clipping, epsilon_follows)
    return Sampler(rows, OneStepState, step, stochastic=eta > 0, start=start_of(grid))


@functools.cache
def _make_step(
    prediction_type: PredictionType, clipping: Clipping, epsilon_follows: bool
) -> Callable[..., OneStepState]:
    def step(predict: Predict, state: OneStepState, row: DdimRows, noise: Latent) -> OneStepState:
        numbers = (predict(state.z, row.t), state.z, row.alpha, row.sigma)
        x0, epsilon = estimate(prediction_type, clipping, *numbers, epsilon_follows=epsilon_follows)
        return OneStepState(row.alpha_next * x0 + row.direction * epsilon + row.std * noise)  # (1)

    return step
