"""The discriminator of a first stage: judges patches of a picture, not the whole (PatchGAN).

    Isola et al. 2017, arXiv:1611.07004, section 3.2.2; pix2pix's N-layer network, as LDM uses it

Nothing in it remembers earlier batches: batch normalisation takes the statistics of the global batch at hand (with
gradient accumulation of the global micro-batch), for it is never used outside training, and spectral normalisation
starts its power iterations anew. Of a kernel that devices share, which is gathered in the compute dtype
(`sharding.make_gather`), it takes the largest singular value after that rounding.

(1) W / sigma(W),  sigma by NUM_ITERATIONS steps of u <- W v / |W v|, v <- W^T u / |W^T u|    Miyato et al. 2018,
    arXiv:1802.05957, algorithm 1
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.config import DiscriminatorConfig
from ldm_jax.nn.parameter import parameter

NUM_ITERATIONS = 8
NUM_GROUPS = 8
_MAX_WIDTH = 8  # of the widest layer, in units of the first
_EPSILON = 1e-5


class Discriminator(nn.Module):
    """Pictures to a map of verdicts: large where a patch looks real."""

    config: DiscriminatorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b p q 1"]:
        """Judge pictures in [-1, 1]; verdicts in float32."""
        config, h = self.config, image.astype(self.dtype)
        for i in range(config.num_layers + 1):
            strides, width = 2 if i < config.num_layers else 1, min(2**i, _MAX_WIDTH)
            has_norm = i > 0 and config.norm in ("batch", "group")
            h = self._conv(width * config.base_channels, strides, f"conv_{i}", use_bias=not has_norm)(h)
            h = PatchNorm(config.norm == "batch", self.dtype, name=f"norm_{i}")(h) if has_norm else h
            h = nn.leaky_relu(h, 0.2)
        return self._conv(1, 1, "conv_out", use_bias=True)(h).astype(jnp.float32)

    def _conv(self, features: int, strides: int, name: str, *, use_bias: bool) -> nn.Module:
        conv = partial(PatchConv, features, strides, use_bias=use_bias, dtype=self.dtype, name=name)
        return conv(spectral=self.config.norm == "spectral")


class PatchConv(nn.Module):
    """A 4x4 convolution with one position of padding, its kernel normalised by (1) where told."""

    features: int
    strides: int
    use_bias: bool = True
    spectral: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        """Convolve `x` in the compute dtype."""
        init = nn.initializers.normal(0.02)
        kernel = parameter(self, "kernel", init, (4, 4, x.shape[-1], self.features))
        if self.spectral:
            kernel = kernel / largest_singular_value(kernel.reshape(-1, self.features))
        h = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.strides, self.strides),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if not self.use_bias:
            return h
        return h + parameter(self, "bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)


class PatchNorm(nn.Module):
    """Batch or group normalisation with a scale that starts near 1; statistics in float32, by two passes."""

    over_batch: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalise `x` over the global batch and space, or over space and groups of channels."""
        channels = x.shape[-1]
        scale = parameter(self, "scale", _near_one, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        grouped = x.astype(jnp.float32)
        if self.over_batch:
            axes = (0, 1, 2)
        else:
            groups = next(g for g in range(min(NUM_GROUPS, channels), 0, -1) if channels % g == 0)
            grouped, axes = grouped.reshape(*x.shape[:3], groups, -1), (1, 2, 4)
        centred = grouped - jnp.mean(grouped, axis=axes, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=axes, keepdims=True)
        return ((centred / jnp.sqrt(variance + _EPSILON)).reshape(x.shape) * scale + bias).astype(self.dtype)


def _near_one(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, " c"]:
    return 1.0 + nn.initializers.normal(0.02)(key, shape, dtype)


def largest_singular_value(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    """The largest singular value (1); its gradient passes the matrix and not the iterations."""
    fixed = jax.lax.stop_gradient(matrix)
    v = jnp.ones(matrix.shape[1]) / jnp.sqrt(matrix.shape[1])
    u = jnp.zeros(matrix.shape[0])
    for _ in range(NUM_ITERATIONS):
        u = fixed @ v
        u = u / (jnp.linalg.norm(u) + 1e-12)
        v = fixed.T @ u
        v = v / (jnp.linalg.norm(v) + 1e-12)
    return u @ (matrix @ v)
