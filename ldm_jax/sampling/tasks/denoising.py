"""Denoising of a noisy picture: its latent is taken for a z_t of the level that it has, and sampled from there.

(1) noise of a picture, where nobody tells it: median |HH| / 0.6745, HH the diagonal details of Haar's wavelet
                                                        Donoho and Johnstone 1994, Biometrika 81(3), section 4.2
(2) noise of its latent: the spread tau of encode(x + noise) - encode(x), with noise of that strength and x the picture
(3) the timestep whose sigma / alpha is nearest to tau; z_t = alpha_t encode(x)

(3) takes the latent's noise to be white and Gaussian, as the denoiser was taught. Behind an encoder that is so in part
alone, and the less the more the encoder compresses. Noise that was cut off at black and white is weaker than it was,
and (1) sees it where it is: a picture that is mostly white has little.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ldm_jax import rng
from ldm_jax.config import SamplingConfig
from ldm_jax.diffusion.samplers import Sampler
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import UserError
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.sampling.session import Session


def estimate_noise(image: UInt8[np.ndarray, "h w c"]) -> float:
    """Standard deviation of a picture's noise (1), in values of 255.

    Raises:
        UserError: none is seen.
    """
    x = image.astype(np.float64)[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    details = (x[::2, ::2] - x[1::2, ::2] - x[::2, 1::2] + x[1::2, 1::2]) / 2.0
    found = float(np.median(np.abs(details)) / 0.6745)
    if found == 0.0:
        raise UserError(
            "no noise is seen in the picture: most of it is even; if there is some, tell how strong by --noise-level, "
            "in values of 255"
        )
    return found


def latent_noise(
    model: LatentDiffusion, params: Params, image: Float[np.ndarray, "h w c"], noise_level: float
) -> float:
    """Spread tau of a latent's noise (2), for noise of so many values of 255 on a picture in [-1, 1]."""
    return float(_spread(model)(params, jnp.asarray(image)[None], noise_level / 127.5))


@functools.cache
def _spread(model: LatentDiffusion) -> Callable[..., Float[Array, ""]]:
    def spread(params: Params, image: Float[Array, "1 h w c"], strength: Float[Array, ""]) -> Float[Array, ""]:
        noise = rng.normal(rng.sample_keys(rng.named_key(rng.root_key(0), "probe"), jnp.arange(1)), image.shape[1:])
        with_noise, without = (model.likeliest_latent(params, x) for x in (image + strength * noise, image))
        return jnp.std(with_noise - without)

    return jax.jit(spread)


def timestep_of(schedule: NoiseSchedule, tau: float) -> int:
    """The timestep (3)."""
    alpha, sigma = np.asarray(schedule.alpha, np.float64), np.asarray(schedule.sigma, np.float64)
    with np.errstate(divide="ignore"):
        levels = np.log(sigma) - np.log(alpha)
    return int(np.argmin(np.abs(levels - math.log(max(tau, 1e-12)))))


def denoising_draws_noise(session: Session, config: SamplingConfig) -> bool:
    """Whether the sampler that cleans a noisy picture adds fresh noise, by which each sample is another picture."""
    return denoising_sampler(session, config, session.model.schedule.num_train_timesteps - 1).stochastic


def denoising_sampler(session: Session, config: SamplingConfig, t: int) -> Sampler:
    """The sampler of a configuration from a timestep on, in evenly spaced ones."""
    return session.sampler(dataclasses.replace(config, sigmas="schedule"), first=t)


def num_steps_from(t: int, schedule: NoiseSchedule, num_steps: int) -> int:
    """Steps from a timestep to clean data, as dense as `num_steps` from the last one."""
    return min(max(1, math.ceil(num_steps * (t + 1) / schedule.num_train_timesteps)), t + 1)
