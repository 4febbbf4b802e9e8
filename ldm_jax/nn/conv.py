"""Convolutions for any number of spatial axes.

(1) y[p] = bias + sum_d kernel[d]^T x[s p + d]    with zeros outside; stride s
(2) dL/dkernel[d] = sum_p x[p] (dL/dy[p - d])^T   the derivative of (1) with stride 1
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.dense import spread
from ldm_jax.nn.parameter import parameter

Padding: TypeAlias = tuple[tuple[int, int], ...]
"""Zeros before and after each spatial axis."""


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

    XLA's convolution is used for all others, and its derivatives but one: see `has_quick_products`.
    """
    if all(size == 1 for size in kernel.shape[:-2]):
        return x @ kernel.reshape(kernel.shape[-2:])
    *sizes, _, _ = kernel.shape
    around = tuple(((size - 1) // 2, size // 2) for size in sizes) if padding is None else tuple(padding)
    if strides is None and has_quick_products(kernel):
        return _convolve_by_one(x, kernel, around)
    return _convolve(x, kernel, tuple(strides or (1,) * len(sizes)), around)


def has_quick_products(kernel: Float[Array, "..."]) -> bool:
    """Whether a CPU takes the gradient of a kernel (2) sooner as a matrix product for each of its positions.

    Measured in float32 on one core against XLA's own at maps of 4 to 256 positions a side: 0.27 to 0.9 of its time from
    192 channels of input and output together and 64 of either; up to 1.6 times with fewer (docs/performance.md).
    """
    channels, features = kernel.shape[-2:]
    return kernel.dtype == jnp.float32 and min(channels, features) >= 64 and channels + features >= 192


def _convolve(
    x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."], strides: tuple[int, ...], padding: Padding
) -> Float[Array, "b *positions d"]:
    space = "DHW"[-len(strides) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_by_one(
    x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."], padding: Padding
) -> Float[Array, "b *positions d"]:
    """(1) with stride 1; the gradient of its kernel is formulated for the platform."""
    return _convolve(x, kernel, (1,) * len(padding), padding)


def _forward(
    x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."], padding: Padding
) -> tuple[Float[Array, "b *positions d"], tuple[Array, Array]]:
    return _convolve_by_one(x, kernel, padding), (x, kernel)


def _backward(
    padding: Padding, kept: tuple[Array, Array], gradient: Float[Array, "b *positions d"]
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "..."]]:
    return convolution_gradients(*kept, padding, gradient)


_convolve_by_one.defvjp(_forward, _backward)


def convolution_gradients(
    x: Float[Array, "b *spatial c"],
    kernel: Float[Array, "..."],
    padding: Padding,
    gradient: Float[Array, "b *positions d"],
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "..."]]:
    """Gradients of the input and of the kernel of a convolution with stride 1; nothing of it is computed again."""
    convolve_by_one = partial(_convolve, strides=(1,) * len(padding), padding=padding)
    (of_x,) = jax.linear_transpose(lambda x: convolve_by_one(x, kernel), x)(gradient)

    def by_xla(x: Float[Array, "b *spatial c"], gradient: Float[Array, "b *positions d"]) -> Float[Array, "..."]:
        return jax.linear_transpose(lambda kernel: convolve_by_one(x, kernel), kernel)(gradient)[0]

    if not has_quick_products(kernel):
        return of_x, by_xla(x, gradient)

    def by_products(x: Float[Array, "b *spatial c"], gradient: Float[Array, "b *positions d"]) -> Float[Array, "..."]:
        return _kernel_gradient(x, gradient, kernel.shape[:-2], padding)

    return of_x, lax.platform_dependent(x, gradient, cpu=by_products, default=by_xla)


def _kernel_gradient(
    x: Float[Array, "b *spatial c"],
    gradient: Float[Array, "b *positions d"],
    sizes: tuple[int, ...],
    padding: Padding,
) -> Float[Array, "..."]:
    """(2), a product for each position of a kernel of these `sizes`.

    The barriers keep one transposed copy of `x`, and each window of the gradient in one piece, as the product wants it.
    """
    channels, features = x.shape[-1], gradient.shape[-1]
    columns = lax.optimization_barrier(x.reshape(-1, channels).T)
    wider = [(size - 1 - before, size - 1 - after) for size, (before, after) in zip(sizes, padding, strict=True)]
    padded = jnp.pad(gradient, [(0, 0), *wider, (0, 0)])
    products = []
    for position in itertools.product(*map(range, sizes)):
        begins = [size - 1 - at for size, at in zip(sizes, position, strict=True)]
        window = tuple(slice(begin, begin + n) for begin, n in zip(begins, x.shape[1:-1], strict=True))
        rows = lax.optimization_barrier(padded[(slice(None), *window)])
        products.append(columns @ rows.reshape(-1, features))
    return jnp.stack(products).reshape(*sizes, channels, features)
