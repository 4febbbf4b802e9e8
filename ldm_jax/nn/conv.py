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

SMALL_KERNEL = 2**15
"""Values of a kernel; for smaller ones XLA's own gradient is as quick."""

STRIP_VALUES = 2**22
"""Of the input, shifted once for each row of the kernel, that are one operand of a product: 16 MiB in float32."""

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

    They are XLA's own, but for what it is slow at on a CPU (docs/performance.md): (2) of all but small kernels, and (3)
    where positions are fewer than channels of the output, for which it turns round the kernel, the larger of the two.
    """

    def by_xla(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return _of_input(x, kernel, gradient, padding), _of_kernel(x, kernel, gradient, padding)

    has_few_positions = gradient.size <= gradient.shape[-1] ** 2

    def by_shifts(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        of_input = _of_input_as_it_lies if has_few_positions else _of_input
        return of_input(x, kernel, gradient, padding), _of_kernel_by_shifts(x, kernel, gradient, padding)

    if kernel.dtype != jnp.float32 or kernel.size < SMALL_KERNEL:  # sums in bfloat16 would not be exact
        return by_xla(x, kernel, gradient)
    return lax.platform_dependent(x, kernel, gradient, cpu=by_shifts, default=by_xla)


def _of_input(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    strides = (1,) * len(padding)
    return jax.linear_transpose(lambda x: _convolve(x, kernel, strides, padding), x)(gradient)[0]


def _of_kernel(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    strides = (1,) * len(padding)
    return jax.linear_transpose(lambda kernel: _convolve(x, kernel, strides, padding), kernel)(gradient)[0]


def _of_kernel_by_shifts(x: Array, kernel: Array, gradient: Array, padding: Padding) -> Array:
    """(2) as a matrix product: the gradient is shifted along the last spatial axis, the input along all others.

    Of long maps it is the sum over strips of the first axis. Samples stay the outer of the axes that are summed over:
    only so can the compiler divide the product by samples over devices.
    """
    *sizes, width, channels, features = kernel.shape
    *around, (before, after) = padding
    if not sizes:
        return _of_kernel_by_shifts(x[:, None], kernel[None], gradient[:, None], ((0, 0), *padding))[0]
    turned = lax.optimization_barrier(x.reshape(-1, channels).T)  # in one piece: fused with more it is far slower
    turned = jnp.pad(turned.reshape(channels, *x.shape[:-1]), [(0, 0), (0, 0), *around, (0, 0)])
    gradient = jnp.pad(gradient, [(0, 0), *((0, 0),) * len(sizes), (width - 1 - before, width - 1 - after), (0, 0)])
    shifts, columns, length = [*itertools.product(*map(range, sizes))], x.shape[-2], gradient.shape[1]
    rows = math.ceil(length / min(math.ceil(len(shifts) * x.size / STRIP_VALUES), MAX_STRIPS, length))
    total = jnp.zeros((len(shifts) * channels, width * features), kernel.dtype)
    for begin in range(0, length, rows):
        strip = gradient[:, begin : begin + rows]
        reach = turned[:, :, begin : begin + strip.shape[1] + sizes[0] - 1]
        windows = [tuple(slice(d, d + n) for d, n in zip(shift, strip.shape[1:-2], strict=True)) for shift in shifts]
        inputs = jnp.concatenate([reach[(slice(None), slice(None), *window)] for window in windows])
        gradients = jnp.concatenate([strip[..., d : d + columns, :] for d in reversed(range(width))], axis=-1)
        total += inputs.reshape(total.shape[0], -1) @ gradients.reshape(-1, total.shape[1])
    return jnp.swapaxes(total.reshape(*sizes, channels, width, features), -3, -2)


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
