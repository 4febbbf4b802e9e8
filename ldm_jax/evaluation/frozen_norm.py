"""Batch normalisation as trained networks carry it: four vectors that no longer change."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ldm_jax.interop.mapping import KERNEL, PLAIN, Slot
from ldm_jax.nn.parameter import parameter

_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


class FrozenNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias for each channel."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Normalise."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (x.shape[-1],)
        mean, bias = parameter(self, "mean", zeros, shape), parameter(self, "bias", zeros, shape)
        variance, scale = parameter(self, "variance", ones, shape), parameter(self, "scale", ones, shape)
        return (x - mean) * (lax.rsqrt(variance + self.epsilon) * scale) + bias


def torch_slot(module: str, leaf: str) -> Slot:
    """The tensor of PyTorch's layer `module` that a leaf of ours is: a kernel, or a vector of a layer or a norm."""
    if leaf == "kernel":
        return Slot(f"{module}.weight", KERNEL)
    return Slot(f"{module}.{_LEAVES[leaf]}", PLAIN)


def average_pool(x: Float[Array, "b h w c"], *, count_padding: bool) -> Float[Array, "b h w c"]:
    """The mean of 3 x 3 neighbours; beyond the edge there are zeros, which count or do not."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=count_padding)


def mean_over_space(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """The mean of each channel."""
    return jnp.mean(x, axis=(1, 2))
