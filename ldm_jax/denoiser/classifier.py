"""The classifier of noisy latents: the way down of the denoising U-Net, then a vote over all positions.

Dhariwal and Nichol 2021, arXiv:2105.05233, section 4 (there with attention pooling in place of the mean); LDM's
`NoisyLatentImageClassifier`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.config import ClassifierConfig
from ldm_jax.denoiser.unet import DownLevel, Middle
from ldm_jax.nn.compute import Compute
from ldm_jax.nn.conv import Conv
from ldm_jax.nn.embeddings import VectorEmbedding, sinusoidal_embedding
from ldm_jax.nn.norm import GroupNorm


class NoisyClassifier(nn.Module):
    """Noisy latent and time to logits of classes."""

    config: ClassifierConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, zt: Float[Array, "b *spatial c"], t: Int[Array, " b"] | Float[Array, " b"], *, train: bool = False
    ) -> Float[Array, "b k"]:
        """Classify in float32."""
        network, compute = self.config.network, Compute(self.dtype)
        width = network.time_embedding_dim or 4 * network.base_channels
        sinusoid = sinusoidal_embedding(t, network.base_channels, network.time_frequencies, network.time_order)
        embedding = VectorEmbedding(width, self.dtype, name="time")(sinusoid)
        h = Conv(network.base_channels, dtype=self.dtype, name="conv_in")(zt.astype(self.dtype))
        for level in range(len(network.channel_mult)):
            h = DownLevel(network, level, compute, name=f"down_{level}")(h, embedding, None, train)[-1]
        h = Middle(network, compute, name="mid")(h, embedding, None, train)
        h = jax.nn.silu(GroupNorm(network.num_groups, network.norm_epsilon, self.dtype, name="norm_out")(h))
        votes = jnp.mean(h.astype(jnp.float32), axis=tuple(range(1, h.ndim - 1)))
        return nn.Dense(self.config.num_classes, name="logits")(votes)


def log_probability(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Logarithm of the probability of each sample's class."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[:, None], axis=-1)[:, 0]
