"""DDPM's ancestral sampling, with any number of steps.

(1) z_s ~ q(z_s | z_t, z_0 = the estimate), the posterior of the forward process between the two timesteps
    Ho et al. 2020, arXiv:2006.11239, algorithm 2 with the smaller of its two variances (section 3.2)
(2) the larger variance, that of q(z_t | z_s): sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, DDPM's beta_t
                                                                                the same, section 3.2
(3) between both where the denoiser has learned it: `learned_variance.py`, eq. 1
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.learned_variance import log_growth, split_output
from ldm_jax.diffusion.process import posterior_weights
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping, check_clipping, estimate
from ldm_jax.diffusion.samplers.grid import Grid, require_signal
from ldm_jax.diffusion.samplers.sampler import Column, Latent, OneStepState, Predict, Sampler, columns, start_of


class DdpmRows(NamedTuple):
    """From noise level (alpha, sigma) at t to z_s = z0_weight z_0 + zt_weight z_t + std noise (1)."""

    t: Column
    alpha: Column
    sigma: Column
    z0_weight: Column
    zt_weight: Column
    std: Column
    sigma_next: Column


def ddpm(
    grid: Grid,
    prediction_type: PredictionType,
    *,
    variance: Literal["small", "large", "learned"] = "small",
    clipping: Clipping = NO_CLIPPING,
) -> Sampler:
    """Ancestral sampling (1) over the given grid.

    Args:
        grid: times and noise levels.
        prediction_type: what the denoiser predicts.
        variance: the posterior's (1), the forward step's (2), or what the denoiser has learned (3); the step to clean
            data has none.
        clipping: bounds of the estimated z_0, for models of bounded data.

    Raises:
        UserError: epsilon is predicted where there is no signal.
    """
    check_clipping(clipping)
    require_signal(prediction_type, grid.alpha)
    z0_weight, zt_weight, spread = posterior_weights(grid.alpha, grid.sigma, grid.alpha_next, grid.sigma_next)
    if variance == "large":
        forward = grid.sigma**2 - (grid.alpha / grid.alpha_next * grid.sigma_next) ** 2  # (2)
        spread = np.where(grid.sigma_next > 0.0, forward, 0.0)
    numbers = (grid.t, grid.alpha, grid.sigma, z0_weight, zt_weight, np.sqrt(spread), grid.sigma_next)
    learned = variance == "learned"
    step = _make_step(prediction_type, clipping, learned)
    rows, start = DdpmRows(*columns(*numbers)), start_of(grid)
    return Sampler(rows, OneStepState, step, stochastic=True, start=start, takes_variance=learned)


@functools.cache
def _make_step(prediction_type: PredictionType, clipping: Clipping, learned: bool) -> Callable[..., OneStepState]:
    def step(predict: Predict, state: OneStepState, row: DdpmRows, noise: Latent) -> OneStepState:
        prediction, v = split_output(predict(state.z, row.t), state.z)
        x0, _ = estimate(prediction_type, clipping, prediction, state.z, row.alpha, row.sigma)
        std = row.std
        if learned:
            growth = log_growth(v, row.sigma, jnp.where(row.sigma_next > 0, row.sigma_next, row.sigma))
            std *= jnp.exp(0.5 * growth).astype(state.z.dtype)  # (3)
        return OneStepState(row.z0_weight * x0 + row.zt_weight * state.z + std * noise)  # (1)

    return step
