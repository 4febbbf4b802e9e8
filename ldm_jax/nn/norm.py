"""Group and layer normalisation with float32 statistics.

The variance is taken in a second pass, around the mean: the one-pass form E[x^2] - E[x]^2 loses all its digits when the
mean is large. Both passes reduce over space first and over the channels of a group second, on an array of `[b, c]`,
which XLA turns into plain reductions (about three times faster on a CPU than reshaping the channels into groups).

(1) y = (x - mean) / sqrt(var + epsilon) * scale + bias    Wu and He 2018, arXiv:1803.08494;
                                                           Ba et al. 2016, arXiv:1607.06450
(2) dx = (g - mean(g) - n mean(g n)) / sqrt(var + epsilon),  n = (x - mean) / sqrt(var + epsilon),  g = scale dy,
    the derivative of (1), with the means over the values of a group
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.parameter import parameter


class Moments(NamedTuple):
    """Mean and variance of the group of each channel, `[b, 1, ..., c]`, in float32."""

    mean: Float[Array, "b *ones c"]
    variance: Float[Array, "b *ones c"]


def group_moments(x: Float[Array, "b *spatial c"], num_groups: int) -> Moments:
    """Moments over space and the channels of a group."""
    mean = _mean_of_group(_mean_of_channel(x.astype(jnp.float32)), num_groups)
    return Moments(mean, _mean_of_group(_mean_of_channel(jnp.square(x.astype(jnp.float32) - mean)), num_groups))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "b *spatial c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    num_groups: int,
    epsilon: float,
) -> Float[Array, "b *spatial c"]:
    """Normalise each group of neighbouring channels over space (1); computed in float32, returned in float32.

    Its gradient (2) is written out: the compiler's own keeps float32 copies of `x` and passes over them once more.
    """
    return _forward(x, scale, bias, num_groups, epsilon)[0]


def _forward(
    x: Float[Array, "b *spatial c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    num_groups: int,
    epsilon: float,
) -> tuple[Float[Array, "b *spatial c"], tuple[Array, ...]]:
    x = jax.lax.optimization_barrier(x)  # or what made `x` would write it in float32, twice the bytes of bfloat16
    moments = group_moments(x, num_groups)
    y, factor = _normalize(x, scale, bias, moments, epsilon)
    return y, (x, moments.mean, factor, scale)


def _normalize(
    x: Float[Array, "b *spatial c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    moments: Moments,
    epsilon: float,
) -> tuple[Float[Array, "b *spatial c"], Float[Array, "b *ones c"]]:
    """(1), and the factor in it."""
    factor = 1.0 / jnp.sqrt(moments.variance + epsilon)
    return (x.astype(jnp.float32) - moments.mean) * (factor * scale) + bias, factor


def _backward(
    num_groups: int, epsilon: float, kept: tuple[Array, ...], gradient: Float[Array, "b *spatial c"]
) -> tuple[Float[Array, "b *spatial c"], Float[Array, " c"], Float[Array, " c"]]:
    """(2), with both sums over space taken in one pass over `x` and the gradient, and applied in a second."""
    x, mean, factor, scale = kept
    along, size = tuple(range(1, x.ndim - 1)), x[0, ..., 0].size
    normal = (x.astype(jnp.float32) - mean) * factor
    of_bias = jnp.sum(gradient, axis=along, keepdims=True)
    of_scale = jnp.sum(gradient * normal, axis=along, keepdims=True)
    constant, slope = (_mean_of_group(total * scale / size, num_groups) for total in (of_bias, of_scale))
    of_x: Array = factor * (scale * gradient - constant - normal * slope)
    return of_x.astype(x.dtype), of_scale.reshape(-1, x.shape[-1]).sum(0), of_bias.reshape(-1, x.shape[-1]).sum(0)


group_norm.defvjp(_forward, _backward)


def _mean_of_channel(values: Float[Array, "b *spatial c"]) -> Float[Array, "b *ones c"]:
    return jnp.mean(values, axis=tuple(range(1, values.ndim - 1)), keepdims=True)


def _mean_of_group(of_channel: Float[Array, "b *ones c"], num_groups: int) -> Float[Array, "b *ones c"]:
    """The mean over the channels of a group, for each of them."""
    grouped = jnp.mean(of_channel.reshape(of_channel.shape[0], num_groups, -1), axis=-1)
    return jnp.repeat(grouped, of_channel.shape[-1] // num_groups, axis=-1).reshape(of_channel.shape)


class GroupNorm(nn.Module):
    """Group normalisation with a learned scale and bias for each channel."""

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"], moments: Moments | None = None) -> Float[Array, "b *spatial c"]:
        """Normalise `x`, by the moments of what it is a part of if they are given; the result has the compute dtype."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        if moments is not None:
            return _normalize(x, scale, bias, moments, self.epsilon)[0].astype(self.dtype)
        y: Array = group_norm(x, scale, bias, self.num_groups, self.epsilon)
        return y.astype(self.dtype)


def layer_norm(dtype: DTypeLike, name: str, epsilon: float = 1e-5) -> nn.LayerNorm:
    """Layer normalisation over channels (1) with two-pass statistics."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)
