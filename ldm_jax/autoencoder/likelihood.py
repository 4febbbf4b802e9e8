"""How likely a decoder finds an 8-bit picture: the part of a picture's bound that the autoencoder adds to its latents.

(1) -log p(x) <= E_q[-log p(x | z)] - H(q(z | x)) + E_q[-log p(z)]     Kingma and Welling 2013, arXiv:1312.6114, eq. 2
(2) p(x | z) is the share that a density f around decode(z) has of the interval of each 8-bit value, which is 2 / 255
    wide; the first and the last value have the tails                  Ho et al. 2020, arXiv:2006.11239, eq. 13
(3) f is that of the reconstruction loss: Laplace with the mean error as its scale for l1, normal with the root of the
    mean squared error for l2. Of all scales these make the pictures that they were taken from most likely.
"""

from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

ErrorKind: TypeAlias = Literal["l1", "l2"]

_HALF = 1 / 255
"""Half of the interval of an 8-bit value, where 0..255 are -1..1."""


def picture_log_likelihood(
    kind: ErrorKind,
    image: Float[Array, "b *spatial c"],
    decoded: Float[Array, "b *spatial c"],
    scale: Float[Array, ""] | float,
) -> Float[Array, " b"]:
    """log p(x | z) of 8-bit pictures in [-1, 1] in nats (2), summed over each picture; never above 0."""
    below = jnp.where(image < -1 + _HALF, -jnp.inf, (image - _HALF - decoded) / scale)
    above = jnp.where(image > 1 - _HALF, jnp.inf, (image + _HALF - decoded) / scale)
    # by symmetry to the side on which the logarithms of both ends keep their digits
    flipped = below + above > 0
    low, high = jnp.where(flipped, -above, below), jnp.where(flipped, -below, above)
    log_cdf = _log_laplace if kind == "l1" else log_ndtr
    at_low, at_high = log_cdf(low), log_cdf(high)
    shares = at_high + jnp.log(-jnp.expm1(at_low - at_high))
    return shares.reshape(len(image), -1).sum(1)


def mean_error(
    kind: ErrorKind, image: Float[Array, "b *spatial c"], decoded: Float[Array, "b *spatial c"]
) -> Float[Array, " b"]:
    """Mean absolute or squared error of each picture."""
    error = jnp.abs(image - decoded) if kind == "l1" else jnp.square(image - decoded)
    return error.reshape(len(image), -1).mean(1)


def fitted_scale(kind: ErrorKind, errors: Float[np.ndarray, " n"]) -> float:
    """The scale (3) from what `mean_error` says of pictures; at least a tenth of an 8-bit value."""
    mean = float(np.mean(errors, dtype=np.float64))
    return max(mean if kind == "l1" else mean**0.5, 0.2 * _HALF)


def _log_laplace(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Logarithm of the distribution function of a Laplace density of scale 1."""
    negative = jnp.minimum(x, 0.0) - np.log(2.0)
    return jnp.where(x < 0, negative, jnp.log1p(-0.5 * jnp.exp(-jnp.maximum(x, 0.0))))
