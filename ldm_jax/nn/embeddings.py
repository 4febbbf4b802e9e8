"""The sinusoidal embedding of the diffusion time.

(1) embedding(t) = [cos(t w_0), ..., cos(t w_{h-1}), sin(t w_0), ..., sin(t w_{h-1})],  w_i = 10000^(-i / h)
    Vaswani et al. 2017, arXiv:1706.03762, in the order of the original latent-diffusion code: cosines first.
    The code of Ho et al. 2020, arXiv:2006.11239, has sines first and i / (h - 1).
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.nn.dense import Dense

Frequencies = Literal["half", "half_minus_one"]
Order = Literal["cos_sin", "sin_cos"]


def sinusoidal_embedding(
    t: Int[Array, " b"] | Float[Array, " b"], dim: int, frequencies: Frequencies = "half", order: Order = "cos_sin"
) -> Float[Array, "b d"]:
    """Embed each time as cosines and sines (1), in float32; an odd `dim` ends with a zero."""
    half = dim // 2
    steps = half if frequencies == "half" else half - 1
    w = np.exp(-np.log(10000.0) * np.arange(half) / steps).astype(np.float32)
    angle = t.astype(jnp.float32)[:, None] * w
    parts = [jnp.cos(angle), jnp.sin(angle)]
    return jnp.pad(jnp.concatenate(parts if order == "cos_sin" else parts[::-1], axis=-1), ((0, 0), (0, dim % 2)))


class VectorEmbedding(nn.Module):
    """Two dense layers of `features` around a SiLU: a vector as the network's time embedding."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, vector: Float[Array, "b d"]) -> Float[Array, "b e"]:
        """Embed the vectors."""
        h = Dense(self.features, dtype=self.dtype, name="dense_0")(vector.astype(self.dtype))
        return Dense(self.features, dtype=self.dtype, name="dense_1")(jax.nn.silu(h))
