"""Convolutions for any number of spatial axes.

(1) y[p] = bias + sum_d kernel[d]^T x[s p + d]    with zeros outside; stride s
(2) dL/dkernel[d] = sum_p x[p] (dL/dy[p - d])^T   the derivatives of (1) with stride 1
(3) dL/dx[p] = sum_d kernel[d] dL/dy[p - d]
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.dense import product, spread
from ldm_jax.nn.gradients import with_gradients
from ldm_jax.nn.parameter import parameter

Padding: TypeAlias = tuple[tuple[int, int], ...]
"""Zeros before and after each spatial axis."""

STRIP_VALUES = 2**19
"""Values of input and gradient together that fit into a core's cache: 2 MiB in float32."""

MAX_STRIPS = 32
"""Each is compiled by itself, so that larger maps have larger ones."""


class Conv(nn.Module):
    """A convolution (1) with an odd kernel of the same size in every spatial axis.

    Without strides and padding it keeps the resolution. Another `operation` takes the place of `convolve` with its
    input and kernel.
    """

    features: int
    kernel_size: int = 3
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    strides: Sequence[int] | None = None
    padding: Sequence[tuple[int, int]] | None = None
    operation: Callable[[Array, Array], Array] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *positions d"]:
        """Convolve `x` in the compute dtype."""
        shape = (self.kernel_size,) * (x.ndim - 2) + (x.shape[-1], self.features)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = parameter(self, "kernel", init, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        operation = self.operation or partial(convolve, strides=self.strides, padding=self.padding)
        y = operation(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + spread(bias, y.shape, self.dtype)


def convolve(
    x: Float[Array, "b *spatial c"],
    kernel: Float[Array, "..."],
    strides: Sequence[int] | None = None,
    padding: Sequence[tuple[int, int]] | None = None,
) -> Float[Array, "b *positions d"]:
    """The sum in (1); a kernel of one position is a matrix product.

    XLA's convolution is used for all others; a CPU takes its derivatives as `convolution_gradients` says.
    """
    if all(size == 1 for size in kernel.shape[:-2]):
        return product(x, kernel.reshape(kernel.shape[-2:]))
    *sizes, _, _ = kernel.shape
    around = tuple(((size - 1) // 2, size // 2) for size in sizes) if padding is None else tuple(padding)
    if strides is not None:
        return _convolve(x, kernel, tuple(strides), around)
    by_one = partial(_convolve, strides=(1,) * len(sizes), padding=around)
    return with_gradients(partial(convolution_gradients, padding=around))(by_one)(x, kernel)


def _convolve(
    x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."], strides: tuple[int, ...], padding: Padding
) -> Float[Array, "b *positions d"]:
    space = "DHW"[-len(strides) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def convolution_gradients(
    x: Float[Array, "b *spatial c"],
    kernel: Float[Array, "..."],
    gradient: Float[Array, "b *positions d"],
    padding: Padding,
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "..."]]:
    """Gradients of the input (3) and of the kernel (2) of a convolution with stride 1; nothing of it is computed again.

    They are XLA's own, but for what it is slow at on a CPU: (2) of what does not fit into a core's cache, which is
    summed over strips that do, and (3) where positions are fewer than channels of the output, for which it turns round
    the kernel, the larger of the two (docs/performance.md).
    """

    def by_xla(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return _of_input(x, kernel, gradient, padding), _of_kernel(x, kernel, gradient, padding)

    strips = min(math.ceil((x.size + gradient.size) / STRIP_VALUES), MAX_STRIPS, gradient.shape[1])
    has_few_positions = gradient.size <= gradient.shape[-1] ** 2

    def by_parts(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        of_input = _of_input_as_it_lies if has_few_positions else _of_input
        return of_input(x, kernel, gradient, padding), _of_kernel_in_strips(x, kernel, gradient, padding, strips)

    if kernel.dtype != jnp.float32 or (strips == 1 and not has_few_positions):  # sums in bfloat16 would not be exact
        return by_xla(x, kernel, gradient)
    return lax.platform_dependent(x, kernel, gradient, cpu=by_parts, default=by_xla)


def _of_input(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    strides = (1,) * len(padding)
    return jax.linear_transpose(lambda x: _convolve(x, kernel, strides, padding), x)(gradient)[0]


def _of_kernel(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    strides = (1,) * len(padding)
    return jax.linear_transpose(lambda kernel: _convolve(x, kernel, strides, padding), kernel)(gradient)[0]


def _of_kernel_in_strips(x: Array, kernel: Array, gradient: Array, padding: Padding, strips: int) -> Array:
    """(2) as a sum over `strips` of the first spatial axis, each with the positions of `x` that reach it."""
    around, *rest = padding
    padded = jnp.pad(x, [(0, 0), around, *((0, 0),) * (x.ndim - 2)])
    total, size, rows = jnp.zeros_like(kernel), kernel.shape[0], math.ceil(gradient.shape[1] / strips)
    for begin in range(0, gradient.shape[1], rows):
        strip = gradient[:, begin : begin + rows]
        reach = padded[:, begin : begin + strip.shape[1] + size - 1]
        total += _of_kernel(reach, kernel, strip, ((0, 0), *rest))
    return total


def _of_input_as_it_lies(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    """(3) by one product with the kernel, whose results are added up where they belong."""
    *sizes, channels, features = kernel.shape
    products = gradient @ kernel.reshape(-1, features).T
    wider = [(size - 1 - before, size - 1 - after) for size, (before, after) in zip(sizes, padding, strict=True)]
    padded, total = jnp.pad(products, [(0, 0), *wider, (0, 0)]), jnp.zeros_like(x)
    for number, begins in enumerate(itertools.product(*(range(size - 1, -1, -1) for size in sizes))):
        window = tuple(slice(begin, begin + n) for begin, n in zip(begins, x.shape[1:-1], strict=True))
        total += padded[(slice(None), *window, slice(number * channels, (number + 1) * channels))]
    return total
