"""What one call of the denoiser says about the clean latent and the noise, and how an estimate is kept in bounds.

With p the denoiser's output, the estimates are linear in z_t and p: x0 = a z_t + b p, epsilon = c z_t + d p.

(1) static clipping: x0 in [-range, range]                              Ho et al. 2020, arXiv:2006.11239, appendix B
(2) dynamic thresholding: x0 in [-q, q] / q, q the percentile of |x0| of a sample, at least 1 and at most `range`
                                                                        Saharia et al. 2022, arXiv:2205.11487, sec. 2.3
"""

from typing import NamedTuple, TypeAlias, assert_never

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.config import ClippingKind, PredictionType
from ldm_jax.diffusion.prediction import to_epsilon, to_x0
from ldm_jax.diffusion.samplers.grid import Host
from ldm_jax.diffusion.schedule import per_sample
from ldm_jax.errors import UserError

Pair: TypeAlias = tuple[Host, Host]
"""Weight of the latent and weight of the denoiser's output."""


class Clipping(NamedTuple):
    """How the estimated x0 is kept in bounds (1), (2), for models of bounded data; most latents are not bounded."""

    kind: ClippingKind = "none"
    range: float = 1.0
    """Bound of (1), or largest bound of (2)."""
    percentile: float = 0.995
    """Share of the values of a sample that (2) leaves as they are."""


NO_CLIPPING = Clipping()


def clip(clipping: Clipping, x0: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial c"]:
    """Keep x0 in bounds (1), (2)."""
    match clipping.kind:
        case "none":
            return x0
        case "static":
            return jnp.clip(x0, -clipping.range, clipping.range)
        case "dynamic":
            spread = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), clipping.percentile, axis=1)
            bound = per_sample(jnp.clip(spread, 1.0, clipping.range), x0)
            return jnp.clip(x0, -bound, bound) / bound
        case _:
            assert_never(clipping.kind)


def estimate(
    prediction_type: PredictionType,
    clipping: Clipping,
    prediction: Float[Array, "b *spatial c"],
    zt: Float[Array, "b *spatial c"],
    alpha: Float[Array, ""],
    sigma: Float[Array, ""],
    *,
    epsilon_follows: bool = True,
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "b *spatial c"]]:
    """Estimate z_0 and epsilon.

    Where z_0 is clipped, epsilon follows it, so that both still make z_t; or not, if `epsilon_follows` is False.
    """
    x0 = to_x0(prediction_type, prediction, zt, alpha, sigma)
    if clipping.kind == "none" or not epsilon_follows:
        return clip(clipping, x0), to_epsilon(prediction_type, prediction, zt, alpha, sigma)
    x0 = clip(clipping, x0)
    return x0, to_epsilon("x0", x0, zt, alpha, sigma)


def x0_weights(prediction_type: PredictionType, alpha: Host, sigma: Host) -> Pair:
    """Weights a, b of `to_x0`, on the host."""
    match prediction_type:
        case "epsilon":
            return 1.0 / alpha, -sigma / alpha
        case "x0":
            return np.zeros_like(alpha), np.ones_like(alpha)
        case "v":
            return alpha, -sigma
        case "flow":
            return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)
        case _:
            assert_never(prediction_type)


def epsilon_weights(prediction_type: PredictionType, alpha: Host, sigma: Host) -> Pair:
    """Weights c, d of `to_epsilon`, on the host."""
    match prediction_type:
        case "epsilon":
            return np.zeros_like(alpha), np.ones_like(alpha)
        case "x0":
            return 1.0 / sigma, -alpha / sigma
        case "v":
            return sigma, alpha
        case "flow":
            return 1.0 / (alpha + sigma), alpha / (alpha + sigma)
        case _:
            assert_never(prediction_type)


def check_clipping(clipping: Clipping) -> None:
    """Refuse bounds that are none.

    Raises:
        UserError: the range is not positive, or the percentile is not a share.
    """
    if clipping.range <= 0 or not 0 < clipping.percentile <= 1:
        raise UserError(
            f"clipping range={clipping.range} must be greater than 0 and percentile={clipping.percentile} lie between "
            "0 and 1"
        )
