"""From a conditioner's configuration to its module."""

from typing import TypeAlias, assert_never

import jax.numpy as jnp

from ldm_jax.conditioning.classes import ClassEmbedder
from ldm_jax.conditioning.clip_text import ClipTextTransformer, SdxlConditioner
from ldm_jax.conditioning.embeddings import GivenEmbeddings
from ldm_jax.conditioning.spatial import SpatialRescaler
from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.conditioning.unconditional import NoConditioner
from ldm_jax.config import (
    ClassConditioning,
    ClipTextConditioning,
    Conditioning,
    EmbeddingConditioning,
    SdxlConditioning,
    SpatialConditioning,
    TextConditioning,
    Unconditional,
)
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel

Conditioner: TypeAlias = (
    NoConditioner
    | ClassEmbedder
    | TextTransformer
    | ClipTextTransformer
    | SdxlConditioner
    | SpatialRescaler
    | GivenEmbeddings
)


def make_conditioner(
    config: Conditioning,
    compute_dtype: str,
    *,
    image_size: int,
    latent_size: tuple[int, ...],
    kernel: AttentionKernel = REFERENCE,
) -> Conditioner:
    """The module for `config`, for pictures of `image_size` pixels with latents of `latent_size` positions."""
    dtype = jnp.dtype(compute_dtype)
    match config:
        case Unconditional():
            return NoConditioner()
        case ClassConditioning():
            return ClassEmbedder(config, dtype)
        case TextConditioning():
            return TextTransformer(config, dtype, kernel)
        case ClipTextConditioning():
            return ClipTextTransformer(config, dtype, kernel)
        case SdxlConditioning():
            return SdxlConditioner(config, image_size, dtype, kernel)
        case SpatialConditioning():
            return SpatialRescaler(config, latent_size, dtype)
        case EmbeddingConditioning():
            return GivenEmbeddings(config)
        case _:
            assert_never(config)
