"""The residual block of the autoencoder and the U-Net (LDM; ADM, Dhariwal and Nichol 2021, arXiv:2105.05233).

(1) h = conv(silu(norm(x)));  y = skip(x) + conv(dropout(silu(norm(h + dense(silu(e))))))
(2) with scale_shift_norm: norm(h) * (1 + scale) + shift in place of norm(h + ...), [scale, shift] = dense(silu(e))
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dense import Dense, spread
from ldm_jax.nn.norm import GroupNorm
from ldm_jax.nn.resample import downsample_mean, upsample_nearest


class ResBlock(nn.Module):
    """Two convolutions around an optional embedding, with a skip connection (1).

    `resample` changes the resolution between the first activation and the first convolution, on both paths;
    `zero_init` starts the last convolution at zero, so that the block begins as its skip connection.
    """

    channels: int
    num_groups: int = 32
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    scale_shift_norm: bool = False
    resample: Literal["up", "down"] | None = None
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *spatial c"], embedding: Float[Array, "b e"] | None = None, *, train: bool = False
    ) -> Float[Array, "b *resampled d"]:
        """Apply the block; `embedding` is the time embedding, and `train` turns dropout on (rng `dropout`)."""
        h = jax.nn.silu(self._norm("norm_0")(x))
        h, x = self._resample(h), self._resample(x)
        h = Conv(self.channels, dtype=self.dtype, name="conv_0")(h)
        h = self._embed(h, embedding)
        h = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(jax.nn.silu(h))
        h = Conv(self.channels, zero_init=self.zero_init, dtype=self.dtype, name="conv_1")(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, kernel_size=1, dtype=self.dtype, name="skip")(x)
        return x + h

    def _norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.num_groups, self.norm_epsilon, self.dtype, name=name)

    def _resample(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *resampled c"]:
        if self.resample is None:
            return x
        return upsample_nearest(x) if self.resample == "up" else downsample_mean(x)

    def _embed(
        self, h: Float[Array, "b *spatial c"], embedding: Float[Array, "b e"] | None
    ) -> Float[Array, "b *spatial c"]:
        norm = self._norm("norm_1")
        if embedding is None:
            return norm(h)
        features = self.channels * (2 if self.scale_shift_norm else 1)
        e = Dense(features, dtype=self.dtype, name="embedding")(jax.nn.silu(embedding.astype(self.dtype)))
        e = e.reshape(e.shape[0], *(1 for _ in range(h.ndim - 2)), features)
        if not self.scale_shift_norm:
            return norm(h + spread(e, h.shape, self.dtype))
        scale, shift = (spread(part, h.shape, self.dtype) for part in jnp.split(e, 2, axis=-1))
        return norm(h) * (1 + scale) + shift  # (2)
