"""The dense layer, and how a small array meets a large one, with gradients summed in float32.

The gradient of what is added to every position is a sum over all of them. In bfloat16 XLA takes that sum on a CPU in
bfloat16, which stops growing at 256 times its terms. Here the small array is spread out in float32 and cast afterwards:
the transpose of that is to cast first and to sum in float32. Forward nothing changes, and XLA fuses the two.

(1) y = x W + b;  db = sum over all positions of dy, in float32
(2) dW = x^T dy
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.gradients import with_gradients
from ldm_jax.nn.parameter import parameter


def spread(
    x: Float[Array, "..."] | Float[np.ndarray, "..."], shape: Sequence[int], dtype: DTypeLike
) -> Float[Array, "..."]:
    """`x` repeated to `shape` in `dtype`; its gradient is summed in float32 (1)."""
    return jnp.broadcast_to(x.astype(jnp.float32), tuple(shape)).astype(dtype)


def _of_kernel_on_cpu(x: Float[Array, "*positions c"], gradient: Float[Array, "*positions d"]) -> Float[Array, "c d"]:
    """(2) with the narrower of the two transposed in one piece, and the result too where that is the gradient.

    XLA transposes the gradient whatever its width, and computes all that led to it column by column; a product whose
    result is transposed it turns into one of two transposed arrays, which takes twice the time.
    """
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if x.shape[1] <= gradient.shape[1]:
        return lax.optimization_barrier(x.T) @ gradient
    return lax.optimization_barrier(lax.optimization_barrier(gradient.T) @ x).T


def _gradients(
    x: Float[Array, "*positions c"], kernel: Float[Array, "c d"], gradient: Float[Array, "*positions d"]
) -> tuple[Float[Array, "*positions c"], Float[Array, "c d"]]:
    (of_x,) = jax.linear_transpose(lambda x: x @ kernel, x)(gradient)

    def by_xla(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: x @ kernel, kernel)(gradient)[0]

    return of_x, lax.platform_dependent(x, gradient, cpu=_of_kernel_on_cpu, default=by_xla)


@with_gradients(_gradients)
def product(x: Float[Array, "*positions c"], kernel: Float[Array, "c d"]) -> Float[Array, "*positions d"]:
    """x W at every position; the gradient of the kernel (2) is formulated for the platform."""
    return x @ kernel


class Dense(nn.Module):
    """A matrix product over channels and a bias (1), in the compute dtype on float32 parameters."""

    features: int
    use_bias: bool = True
    kernel_init: jax.nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*positions c"]) -> Float[Array, "*positions d"]:
        """Apply the layer to every position."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return y + spread(bias, y.shape, self.dtype)
