"""Changes of resolution for any number of spatial axes."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.conv import Conv


def resampling_factors(spatial_dims: int) -> tuple[int, ...]:
    """By how much each spatial axis changes between two levels: volumes keep their depth, as in the original U-Net."""
    return (1, 2, 2) if spatial_dims == 3 else (2,) * spatial_dims


def upsample_nearest(
    x: Float[Array, "b *spatial c"], size: tuple[int, ...] | None = None
) -> Float[Array, "b *larger c"]:
    """Repeat each position along the resampled axes; to another `size`, take position floor(i * old / new) for i."""
    for axis, factor in enumerate(resampling_factors(x.ndim - 2), start=1):
        old = x.shape[axis]
        new = factor * old if size is None else size[axis - 1]
        if new == factor * old:
            x = jnp.repeat(x, factor, axis=axis) if factor > 1 else x
        else:
            x = jnp.take(x, np.arange(new) * old // new, axis=axis)
    return x


def downsample_mean(x: Float[Array, "b *spatial c"]) -> Float[Array, "b *smaller c"]:
    """Mean of each window of the resampled axes."""
    factors = resampling_factors(x.ndim - 2)
    return nn.avg_pool(x, factors, strides=factors)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling followed by a 3x3 convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *spatial c"], size: tuple[int, ...] | None = None
    ) -> Float[Array, "b *larger c"]:
        """Double the resolution of `x`, or nearly so: `size` is another one, where halving has rounded."""
        return Conv(x.shape[-1], dtype=self.dtype, name="conv")(upsample_nearest(x, size))


class Downsample(nn.Module):
    """A strided 3x3 convolution.

    `symmetric` pads one position on both sides, as the U-Net does; else one after the end, as the autoencoder does.
    """

    symmetric: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *smaller c"]:
        """Halve the resolution of `x`."""
        factors = resampling_factors(x.ndim - 2)
        padding = [(1, 1) if self.symmetric or factor == 1 else (0, 1) for factor in factors]
        return Conv(x.shape[-1], dtype=self.dtype, strides=factors, padding=padding, name="conv")(x)


def space_to_depth(x: Float[Array, "b *spatial c"], factor: int) -> Float[Array, "b *smaller d"]:
    """Move each `factor`-sided block of space into channels (block positions major, channels minor)."""
    if factor == 1:
        return x
    batch, *spatial, channels = x.shape
    dims = len(spatial)
    x = x.reshape(batch, *(n for size in spatial for n in (size // factor, factor)), channels)
    space, block = range(1, 2 * dims, 2), range(2, 2 * dims + 1, 2)
    x = x.transpose(0, *space, *block, 2 * dims + 1)
    return x.reshape(batch, *(size // factor for size in spatial), channels * factor**dims)


def depth_to_space(x: Float[Array, "b *spatial d"], factor: int) -> Float[Array, "b *larger c"]:
    """Inverse of `space_to_depth`."""
    if factor == 1:
        return x
    batch, *spatial, depth = x.shape
    dims = len(spatial)
    channels = depth // factor**dims
    x = x.reshape(batch, *spatial, *(factor,) * dims, channels)
    pairs = (axis for d in range(dims) for axis in (1 + d, 1 + dims + d))
    return x.transpose(0, *pairs, 2 * dims + 1).reshape(batch, *(size * factor for size in spatial), channels)
