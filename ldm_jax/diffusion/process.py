"""The forward process and its posterior: how z_t arises from z_0, and where z_t came from if z_0 is known.

(1) q(z_t | z_0) = N(alpha_t z_0, sigma_t^2)                         Ho et al. 2020, arXiv:2006.11239, eq. 4
(2) q(z_s | z_t, z_0) = N(mean, variance) for any s < t, with r = SNR_t / SNR_s:
    mean = alpha_s (1 - r) z_0 + (alpha_t / alpha_s) (sigma_s / sigma_t)^2 z_t,  variance = sigma_s^2 (1 - r)
    Kingma et al. 2021, arXiv:2107.00630, appendix A; for s = t - 1 it is Ho et al., eq. 6 and 7
"""

from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float, Int

from ldm_jax.diffusion.schedule import NoiseSchedule, per_sample

Numbers = TypeVar("Numbers", Array, np.ndarray)


def add_noise(
    schedule: NoiseSchedule,
    z0: Float[Array, "b *spatial c"],
    epsilon: Float[Array, "b *spatial c"],
    t: Int[Array, " b"],
) -> Float[Array, "b *spatial c"]:
    """Bring z_0 to timestep t with the given standard normal noise (1)."""
    alpha, sigma = schedule.at(t)
    return per_sample(alpha, z0) * z0 + per_sample(sigma, z0) * epsilon


def posterior_weights(
    alpha: Numbers, sigma: Numbers, alpha_prev: Numbers, sigma_prev: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """Weight of z_0, weight of z_t and variance of (2) between two noise levels, all of one shape.

    In NumPy for samplers, which compute them once in float64, and in JAX for training losses.
    """
    r = ((alpha / alpha_prev) * (sigma_prev / sigma)) ** 2
    gained = (1.0 - r).clip(0.0)  # rounding must not make a variance negative
    return alpha_prev * gained, alpha / alpha_prev * (sigma_prev / sigma) ** 2, sigma_prev**2 * gained


def posterior(
    schedule: NoiseSchedule,
    z0: Float[Array, "b *spatial c"],
    zt: Float[Array, "b *spatial c"],
    t: Int[Array, " b"],
    t_prev: Int[Array, " b"],
) -> tuple[Float[Array, "b *spatial c"], Float[Array, " b"]]:
    """Mean and variance of z at t_prev given z_t and z_0 (2), for any -1 <= t_prev < t; -1 is clean data."""
    z0_weight, zt_weight, variance = posterior_weights(*schedule.at(t), *schedule.at(t_prev))
    return per_sample(z0_weight, z0) * z0 + per_sample(zt_weight, zt) * zt, variance
