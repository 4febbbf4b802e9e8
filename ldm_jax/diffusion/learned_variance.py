"""The variance of a step backwards as the denoiser learns it: a place between the two of DDPM, in the logarithm.

A denoiser that learns it puts as many channels behind its prediction, v, which is in [-1, 1] by habit and not by force.

(1) log V = (v + 1) / 2 log large + (1 - v) / 2 log small, with small the posterior's variance and large the forward
    step's, small (sigma_t / sigma_s)^2                  Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15
(2) KL(q(z_s | z_t, z_0) || p(z_s | z_t)) = (log V / small + (small + weight^2 (z_0 - estimate)^2) / V - 1) / 2
    for each dimension, with the weight of z_0 in the posterior's mean    Ho et al. 2020, arXiv:2006.11239, eq. 5 to 7
(3) hybrid loss = simple + vlb_weight * T * (2), where (2), a mean over the latent in bits, moves v alone: its estimate
    of z_0 has no gradient                               Nichol and Dhariwal 2021, eq. 16
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_jax.diffusion.process import posterior_weights
from ldm_jax.diffusion.schedule import NoiseSchedule, per_sample


def split_output(
    output: Float[Array, "b *spatial o"], zt: Float[Array, "b *spatial c"]
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "b *spatial v"]]:
    """The prediction, and v; this has no channels where the variance is not learned."""
    channels = zt.shape[-1]
    return output[..., :channels], output[..., channels:]


def log_growth(
    v: Float[Array, "b *spatial c"], sigma: Float[Array, "*times"], sigma_next: Float[Array, "*times"]
) -> Float[Array, "b *spatial c"]:
    """log V / small (1) of a step between two noise levels, the second of them above 0."""
    return (v.astype(jnp.float32) + 1.0) * per_sample(jnp.log(sigma / sigma_next), v)


def step_kl(
    schedule: NoiseSchedule,
    t: Int[Array, "*times"],
    error: Float[Array, "b *spatial c"],
    growth: Float[Array, "b *spatial c"],
) -> Float[Array, "b *spatial c"]:
    """(2) in nats of the step from t > 0 to t - 1, for each element.

    Args:
        schedule: of training.
        t: timesteps, one for all or one for each sample.
        error: z_0 less its estimate.
        growth: log V / small.
    """
    weight, _, small = posterior_weights(*schedule.at(t), *schedule.at(t - 1))
    square = jnp.square(error) * per_sample(jnp.square(weight) / small, error)
    return 0.5 * (growth + jnp.exp(-growth) * (1.0 + square) - 1.0)


def variance_loss(
    schedule: NoiseSchedule,
    t: Int[Array, " b"],
    z0: Float[Array, "b *spatial c"],
    estimate: Float[Array, "b *spatial c"],
    v: Float[Array, "b *spatial c"],
) -> Float[Array, " b"]:
    """(2) in bits per dimension, by which v learns; 0 at t = 0, whose step has no noise."""
    at = jnp.maximum(t, 1)
    growth = log_growth(v, schedule.at(at)[1], schedule.at(at - 1)[1])
    kl = step_kl(schedule, at, jax.lax.stop_gradient(z0 - estimate), growth)
    bits = jnp.mean(kl, axis=tuple(range(1, kl.ndim))) / math.log(2)
    return jnp.where(t > 0, bits, 0.0)
