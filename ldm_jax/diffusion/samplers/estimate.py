"""What one call of the denoiser says about the clean latent and the noise."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.prediction import to_epsilon, to_x0
from ldm_jax.errors import UserError


def estimate(
    prediction_type: PredictionType,
    clip_x0: float | None,
    prediction: Float[Array, "b *spatial c"],
    zt: Float[Array, "b *spatial c"],
    alpha: Float[Array, ""],
    sigma: Float[Array, ""],
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "b *spatial c"]]:
    """Estimate z_0 and epsilon; where z_0 is clipped to +-clip_x0, epsilon follows it, so that both still make z_t."""
    x0 = to_x0(prediction_type, prediction, zt, alpha, sigma)
    if clip_x0 is None:
        return x0, to_epsilon(prediction_type, prediction, zt, alpha, sigma)
    x0 = jnp.clip(x0, -clip_x0, clip_x0)
    return x0, to_epsilon("x0", x0, zt, alpha, sigma)


def require_signal(prediction_type: PredictionType, alpha: Float64[np.ndarray, " n"]) -> None:
    """Refuse to divide by zero.

    Raises:
        UserError: the denoiser predicts epsilon and a step starts where there is no signal.
    """
    if prediction_type == "epsilon" and not alpha.all():
        raise UserError(
            "prediction_type=epsilon cannot be sampled from a timestep with zero SNR, where z_t is the noise itself; "
            "use v or x0, or a schedule with zero_terminal_snr=False"
        )
