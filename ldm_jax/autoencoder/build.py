"""From an autoencoder's configuration to its module."""

import jax.numpy as jnp

from ldm_jax.autoencoder.kl import AutoencoderKL
from ldm_jax.autoencoder.vq import AutoencoderVQ
from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig


def make_autoencoder(
    config: AutoencoderKLConfig | AutoencoderVQConfig, image_channels: int, compute_dtype: str
) -> AutoencoderKL | AutoencoderVQ:
    """The module for `config`."""
    dtype = jnp.dtype(compute_dtype)
    if isinstance(config, AutoencoderVQConfig):
        return AutoencoderVQ(config, image_channels, dtype)
    return AutoencoderKL(config, image_channels, dtype)
