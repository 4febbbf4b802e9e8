"""Changes of resolution for any number of spatial axes.

A convolution with three taps k of a row whose positions stand twice, y[j] = sum_d k[d] x[floor((j + d) / 2)], is two
convolutions with two taps of the row itself, of which it takes the results in turn:

(1) y[2i]     =  k[-1] x[i - 1] + (k[0] + k[1]) x[i]
    y[2i + 1] = (k[-1] + k[0]) x[i] + k[1] x[i + 1]
"""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.conv import Conv, Padding, convolution_gradients, convolve
from ldm_jax.nn.gradients import with_gradients


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


def _has_quick_phases(kernel: Float[Array, "..."]) -> bool:
    """Whether sums of taps are exact enough, and the channels so many that products are what costs."""
    return kernel.dtype == jnp.float32 and min(kernel.shape[-2:]) >= 32


def _gradients(
    x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."], gradient: Float[Array, "b *larger d"]
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "..."]]:
    if not _has_quick_phases(kernel):
        return _gradients_in_two_steps(x, kernel, gradient)
    return lax.platform_dependent(x, kernel, gradient, cpu=_gradients_by_phases, default=_gradients_in_two_steps)


@with_gradients(_gradients)
def upsample_and_convolve(x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."]) -> Float[Array, "b *larger d"]:
    """A convolution with three taps in every axis of what `upsample_nearest` makes of `x`.

    A CPU computes it by (1), with 4/9 of the operations in two dimensions. The gradient keeps `x` as it came.
    """
    if not _has_quick_phases(kernel):
        return _in_two_steps(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_by_phases, default=_in_two_steps)


def _in_two_steps(x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."]) -> Float[Array, "b *larger d"]:
    return convolve(upsample_nearest(x), kernel)


def _gradients_in_two_steps(
    x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."], gradient: Float[Array, "b *larger d"]
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "..."]]:
    of_larger, of_kernel = convolution_gradients(upsample_nearest(x), kernel, gradient, ((1, 1),) * (x.ndim - 2))
    return jax.linear_transpose(upsample_nearest, x)(of_larger)[0], of_kernel


def _by_phases(x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."]) -> Float[Array, "b *larger d"]:
    """(1) in each resampled axis: a convolution for each of their phases, whose results are interleaved."""
    factors = resampling_factors(x.ndim - 2)

    def of_phase(phase: tuple[int, ...]) -> Float[Array, "b *larger d"]:
        axis = len(phase)
        if axis == len(factors):
            return convolve(x, _phase_kernel(kernel, phase, factors), padding=_phase_padding(phase, factors))
        parts = [of_phase((*phase, number)) for number in range(factors[axis])]
        shape = list(parts[0].shape)
        shape[axis + 1] *= len(parts)
        return jnp.stack(parts, axis + 2).reshape(shape)

    return of_phase(())


def _gradients_by_phases(
    x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."], gradient: Float[Array, "b *larger d"]
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "..."]]:
    """Sums over the phases of (1), each of which has its own positions of the gradient."""
    factors = resampling_factors(x.ndim - 2)
    of_x, of_kernel = jnp.zeros_like(x), jnp.zeros_like(kernel)
    for phase in itertools.product(*map(range, factors)):
        positions = tuple(slice(number, None, factor) for number, factor in zip(phase, factors, strict=True))
        taps = partial(_phase_kernel, phase=phase, factors=factors)
        padding = _phase_padding(phase, factors)
        parts = convolution_gradients(x, taps(kernel), gradient[(slice(None), *positions)], padding)
        of_x, of_kernel = of_x + parts[0], of_kernel + jax.linear_transpose(taps, kernel)(parts[1])[0]
    return of_x, of_kernel


def _phase_kernel(kernel: Float[Array, "..."], phase: tuple[int, ...], factors: tuple[int, ...]) -> Float[Array, "..."]:
    """The kernel of (1) for a phase: in a resampled axis two taps, of which one is the sum of two."""
    for axis, (number, factor) in enumerate(zip(phase, factors, strict=True)):
        if factor == 2:
            first, middle, last = jnp.split(kernel, 3, axis)
            kernel = jnp.concatenate([first + middle, last] if number else [first, middle + last], axis)
    return kernel


def _phase_padding(phase: tuple[int, ...], factors: tuple[int, ...]) -> Padding:
    pairs = zip(phase, factors, strict=True)
    return tuple((1, 1) if factor == 1 else (1 - number, number) for number, factor in pairs)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling followed by a 3x3 convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *spatial c"], size: tuple[int, ...] | None = None
    ) -> Float[Array, "b *larger c"]:
        """Double the resolution of `x`, or nearly so: `size` is another one, where halving has rounded."""
        twice = tuple(n * factor for n, factor in zip(x.shape[1:-1], resampling_factors(x.ndim - 2), strict=True))
        if size is None or size == twice:
            return Conv(x.shape[-1], dtype=self.dtype, operation=upsample_and_convolve, name="conv")(x)
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
