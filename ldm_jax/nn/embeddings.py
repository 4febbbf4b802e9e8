"""The sinusoidal embedding of the diffusion time.

(1) embedding(t) = [cos(t w_0), ..., cos(t w_{h-1}), sin(t w_0), ..., sin(t w_{h-1})],  w_i = 10000^(-i / h)
    Vaswani et al. 2017, arXiv:1706.03762, in the order of the original latent-diffusion code: cosines first.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def sinusoidal_embedding(t: Int[Array, " b"] | Float[Array, " b"], dim: int) -> Float[Array, "b d"]:
    """Embed each time as cosines and sines (1), in float32; an odd `dim` ends with a zero."""
    half = dim // 2
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angle = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.pad(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1), ((0, 0), (0, dim % 2)))


class TimeEmbedding(nn.Module):
    """The sinusoidal embedding passed through two dense layers of 4 * base_channels."""

    base_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Int[Array, " b"] | Float[Array, " b"]) -> Float[Array, "b e"]:
        """Embed the times `t`."""
        h = sinusoidal_embedding(t, self.base_channels).astype(self.dtype)
        h = nn.Dense(4 * self.base_channels, dtype=self.dtype, name="dense_0")(h)
        return nn.Dense(4 * self.base_channels, dtype=self.dtype, name="dense_1")(jax.nn.silu(h))
