"""From an autoencoder's configuration to its module."""

import jax.numpy as jnp

from ldm_jax.autoencoder.kl import AutoencoderKL
from ldm_jax.autoencoder.vq import AutoencoderVQ
from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig, Remat
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel


def make_autoencoder(
    config: AutoencoderKLConfig | AutoencoderVQConfig,
    image_channels: int,
    compute_dtype: str,
    kernel: AttentionKernel = REFERENCE,
    remat: Remat = "none",
    strip_rows: int | None = None,
) -> AutoencoderKL | AutoencoderVQ:
    """The module for `config`; `strip_rows` need pictures, of two axes."""
    dtype = jnp.dtype(compute_dtype)
    if isinstance(config, AutoencoderVQConfig):
        return AutoencoderVQ(config, image_channels, dtype, kernel, remat, strip_rows)
    return AutoencoderKL(config, image_channels, dtype, kernel, remat, strip_rows)
