"""The training loss of the denoiser, one number for each sample.

With e the difference between prediction and target, averaged over the latent:

(1) l2: e^2    l1: |e|    huber: e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2)
(2) |e_epsilon|^2 = SNR |e_x0|^2,  |e_v|^2 = (SNR + 1) |e_x0|^2      Salimans and Ho 2022, arXiv:2202.00512, section 4
(3) min-SNR: the error of x0 is weighted by min(SNR, gamma), whatever is predicted, which by (2) makes
    w_x0 = min(SNR, gamma),  w_epsilon = min(SNR, gamma) / SNR,  w_v = min(SNR, gamma) / (SNR + 1),
    w_flow = min(SNR, gamma) / (sqrt(SNR) + 1)^2, as |e_flow| = (1 + alpha / sigma) |e_x0|
    Hang et al. 2023, arXiv:2303.09556, section 3.4
(4) where the variance is learned, vlb_weight * T * its own loss is added: `learned_variance.py`, eq. 3
"""

from typing import assert_never

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_jax.config import DiffusionConfig
from ldm_jax.diffusion.learned_variance import split_output, variance_loss
from ldm_jax.diffusion.prediction import DenoiseFn, target_for, to_x0
from ldm_jax.diffusion.process import add_noise
from ldm_jax.diffusion.schedule import NoiseSchedule


def diffusion_loss(
    denoise_fn: DenoiseFn,
    schedule: NoiseSchedule,
    config: DiffusionConfig,
    z0: Float[Array, "b *spatial c"],
    epsilon: Float[Array, "b *spatial c"],
    t: Int[Array, " b"],
) -> Float[Array, " b"]:
    """Weighted loss of each sample in float32, averaged over its latent (1), (3), (4)."""
    alpha, sigma = schedule.at(t)
    target = target_for(config.prediction_type, z0, epsilon, alpha, sigma)
    zt = add_noise(schedule, z0, epsilon, t)
    prediction, v = split_output(denoise_fn(zt, t).astype(jnp.float32), zt)
    error = prediction - target.astype(jnp.float32)
    loss = jnp.mean(distance(error, config), axis=tuple(range(1, error.ndim)))
    if config.weighting == "min_snr":
        loss *= min_snr_weight(config, jnp.square(alpha / sigma))
    if config.variance == "learned":
        estimate = to_x0(config.prediction_type, prediction, zt, alpha, sigma)
        of_variance = variance_loss(schedule, t, z0, estimate, v)
        loss += config.vlb_weight * schedule.num_train_timesteps * of_variance
    return loss


def distance(error: Float[Array, "*shape"], config: DiffusionConfig) -> Float[Array, "*shape"]:
    """Loss of each element (1)."""
    match config.loss:
        case "l2":
            return jnp.square(error)
        case "l1":
            return jnp.abs(error)
        case "huber":
            near = jnp.minimum(jnp.abs(error), config.huber_delta)
            return near * (jnp.abs(error) - 0.5 * near)  # both branches of (1) in one
        case _:
            assert_never(config.loss)


def min_snr_weight(config: DiffusionConfig, snr: Float[Array, " b"]) -> Float[Array, " b"]:
    """Weight of a timestep with this signal-to-noise ratio (3), for the prediction type in use.

    At zero SNR it is 0 for x0, v and flow, and 1 for epsilon, the limit of the formula.
    """
    gamma = config.min_snr_gamma
    match config.prediction_type:
        case "x0":
            return jnp.minimum(snr, gamma)
        case "epsilon":
            return gamma / jnp.maximum(snr, gamma)
        case "v":
            return jnp.minimum(snr, gamma) / (snr + 1.0)
        case "flow":
            return jnp.minimum(snr, gamma) / jnp.square(jnp.sqrt(snr) + 1.0)
        case _:
            assert_never(config.prediction_type)
