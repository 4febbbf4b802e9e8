"""Group and layer normalisation with float32 statistics.

The variance is taken in a second pass, around the mean: the one-pass form E[x^2] - E[x]^2 loses all its digits when the
mean is large. Both passes reduce over space first and over the channels of a group second, on an array of `[b, c]`,
which XLA turns into plain reductions (about three times faster on a CPU than reshaping the channels into groups).

(1) y = (x - mean) / sqrt(var + epsilon) * scale + bias    Wu and He 2018, arXiv:1803.08494;
                                                           Ba et al. 2016, arXiv:1607.06450
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def group_norm(
    x: Float[Array, "b *spatial c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    num_groups: int,
    epsilon: float,
) -> Float[Array, "b *spatial c"]:
    """Normalise each group of neighbouring channels over space (1); computed in float32, returned in float32."""
    batch, channels = x.shape[0], x.shape[-1]
    spatial = tuple(range(1, x.ndim - 1))

    def mean_of_group(values: Float[Array, "b *spatial c"]) -> Float[Array, "b *ones c"]:
        of_channel = jnp.mean(values, axis=spatial)
        of_group = jnp.mean(of_channel.reshape(batch, num_groups, -1), axis=-1)
        return jnp.repeat(of_group, channels // num_groups, axis=-1).reshape(batch, *(1 for _ in spatial), channels)

    centred = x.astype(jnp.float32)
    centred = centred - mean_of_group(centred)
    variance = mean_of_group(jnp.square(centred))
    return centred * (scale / jnp.sqrt(variance + epsilon)) + bias


class GroupNorm(nn.Module):
    """Group normalisation with a learned scale and bias for each channel."""

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial c"]:
        """Normalise `x`; the result has the compute dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return group_norm(x, scale, bias, self.num_groups, self.epsilon).astype(self.dtype)


def layer_norm(dtype: DTypeLike, name: str, epsilon: float = 1e-5) -> nn.LayerNorm:
    """Layer normalisation over channels (1) with two-pass statistics."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)
