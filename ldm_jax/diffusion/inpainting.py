"""Inpainting with any denoiser: where a latent is known, the denoiser is told so.

A denoiser whose estimate of z_0 is the known latent itself carries that part through every sampler along

(1) z_t = alpha_t z_0 + sigma_t epsilon, with the epsilon that it started from, or with fresh noise where the sampler
    adds some: the known part at each level is the known latent noised to that level
    Lugmayr et al. 2022, arXiv:2201.09865, eq. 8; Avrahami et al. 2023, arXiv:2206.02779, section 4.1

so that a solver of any order, with any memory, sees one trajectory and no jumps between its steps.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.guidance import levels_at
from ldm_jax.diffusion.learned_variance import split_output
from ldm_jax.diffusion.prediction import DenoiseFn, convert
from ldm_jax.diffusion.schedule import NoiseSchedule


def keep_known(
    denoise_fn: DenoiseFn,
    z0: Float[Array, "b *spatial c"],
    hole: Float[Array, "b *spatial 1"],
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> DenoiseFn:
    """The denoiser with the prediction that z_0 implies (1) where `hole` is 0, and its own where it is 1.

    Args:
        denoise_fn: the denoiser, guided or not; a learned variance stays its own.
        z0: the known latent; what it is in the hole does not matter.
        hole: 1 where something is to be made up, 0 where z_0 is known.
        schedule: the forward process.
        prediction_type: what the denoiser predicts.
    """

    def denoise(
        zt: Float[Array, "b *spatial c"], t: Int[Array, " b"] | Float[Array, " b"]
    ) -> Num[Array, "b *spatial o"]:
        prediction, variance = split_output(denoise_fn(zt, t), zt)
        known = convert(z0.astype(zt.dtype), "x0", prediction_type, zt, *levels_at(schedule, t))
        kept = jnp.where(hole > 0.5, prediction.astype(zt.dtype), known)
        return jnp.concatenate([kept, variance.astype(zt.dtype)], axis=-1) if variance.shape[-1] else kept

    return denoise
