"""The distribution of the latent given the picture.

(1) q(z | x) = N(mean, exp(logvar))                                  Kingma and Welling 2013, arXiv:1312.6114
(2) KL(q || N(0, 1)) = 1/2 sum(mean^2 + exp(logvar) - 1 - logvar)    the same, appendix B, in nats
(3) entropy = 1/2 sum(1 + log(2 pi) + logvar)                        in nats
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ldm_jax import rng

LOGVAR_RANGE = (-30.0, 20.0)  # as in LDM: keeps exp() finite whatever the encoder says


class DiagonalGaussian(NamedTuple):
    """A Gaussian posterior without correlations (1); `logvar` of minus infinity makes it a point."""

    mean: Float[Array, "b *spatial c"]
    logvar: Float[Array, "b *spatial c"]

    @classmethod
    def from_moments(cls, moments: Float[Array, "b *spatial d"]) -> "DiagonalGaussian":
        """Split stacked moments `[..., 2c]`: means first, log-variances second."""
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return cls(mean, logvar)

    @property
    def moments(self) -> Float[Array, "b *spatial d"]:
        """Means and log-variances stacked along the channels, the form in which latents are stored."""
        return jnp.concatenate([self.mean, self.logvar], axis=-1)

    def sample(self, keys: Key[Array, " b"]) -> Float[Array, "b *spatial c"]:
        """Draw a latent for each sample from its own key (1)."""
        return self.mean + jnp.exp(0.5 * self.logvar) * rng.normal(keys, self.mean.shape[1:])

    def mode(self) -> Float[Array, "b *spatial c"]:
        """The most likely latent."""
        return self.mean

    def kl(self) -> Float[Array, " b"]:
        """Divergence from the standard normal in nats, summed over the latent (2)."""
        terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * jnp.sum(terms, axis=tuple(range(1, terms.ndim)))

    def entropy(self) -> Float[Array, " b"]:
        """Differential entropy in nats (3), summed over the latent; minus infinity for a point."""
        terms = 1.0 + math.log(2.0 * math.pi) + self.logvar
        return 0.5 * jnp.sum(terms, axis=tuple(range(1, terms.ndim)))
