"""Maps that condition the denoiser as further channels of its input (LDM's SpatialRescaler and concatenation)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.config import SpatialConditioning
from ldm_jax.nn.dense import Dense
from ldm_jax.nn.resample import downsample_mean


class SpatialRescaler(nn.Module):
    """`map` [b, *spatial, in_channels] to maps of the latent's size.

    Each stage halves by the mean of 2x2 positions, which is what bilinear interpolation by 1/2 computes.
    """

    config: SpatialConditioning
    latent_size: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """Rescale the maps."""
        del train  # nothing here behaves otherwise in training
        h: Float[Array, "b *spatial c"] = inputs["map"]
        for _ in range(self.config.num_stages):
            h = downsample_mean(h)
        if self.config.out_channels is not None:
            h = Dense(self.config.out_channels, use_bias=False, dtype=self.dtype, name="channel_mapper")(h)
        return Conditions(concat=h)

    def null_inputs(self, batch: int) -> Inputs:
        """Empty maps for `batch` samples."""
        size = (side * 2**self.config.num_stages for side in self.latent_size)
        return {"map": jnp.zeros((batch, *size, self.config.in_channels))}
