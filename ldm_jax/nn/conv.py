"""Convolutions for any number of spatial axes.

(1) y[p] = bias + sum_d kernel[d]^T x[s p + d]    with zeros outside; stride s
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.dense import spread


class Conv(nn.Module):
    """A convolution (1) with an odd kernel of the same size in every spatial axis.

    Without strides and padding it keeps the resolution.
    """

    features: int
    kernel_size: int = 3
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    strides: Sequence[int] | None = None
    padding: Sequence[tuple[int, int]] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *positions d"]:
        """Convolve `x` in the compute dtype."""
        shape = (self.kernel_size,) * (x.ndim - 2) + (x.shape[-1], self.features)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding)
        return y + spread(bias, y.shape, self.dtype)


def convolve(
    x: Float[Array, "b *spatial c"],
    kernel: Float[Array, "..."],
    strides: Sequence[int] | None = None,
    padding: Sequence[tuple[int, int]] | None = None,
) -> Float[Array, "b *positions d"]:
    """The sum in (1); a kernel of one position is a matrix product.

    XLA's convolution is used for all others. Gathering neighbourhoods for one matrix product (im2col) on a CPU took 0.8
    to 1.7 times its time forward and 0.9 to 2.1 times for the gradient of the kernel, at maps of 4 to 16 positions a
    side (docs/performance_cpu.md, 2026-11-24): it won at 4 x 4 alone, by 0.1 to 0.4 ms.
    """
    if all(size == 1 for size in kernel.shape[:-2]):
        return x @ kernel.reshape(kernel.shape[-2:])
    dims = x.ndim - 2
    space = "DHW"[-dims:]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return jax.lax.conv_general_dilated(x, kernel, strides or (1,) * dims, padding or "SAME", dimension_numbers=numbers)
