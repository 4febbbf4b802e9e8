"""From a conditioner's configuration to its module."""

from typing import TypeAlias

import jax.numpy as jnp

from ldm_jax.conditioning.classes import ClassEmbedder
from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.conditioning.unconditional import NoConditioner
from ldm_jax.config import ClassConditioning, Conditioning, TextConditioning

Conditioner: TypeAlias = NoConditioner | ClassEmbedder | TextTransformer


def make_conditioner(config: Conditioning, compute_dtype: str) -> Conditioner:
    """The module for `config`."""
    dtype = jnp.dtype(compute_dtype)
    if isinstance(config, TextConditioning):
        return TextTransformer(config, dtype)
    if isinstance(config, ClassConditioning):
        return ClassEmbedder(config, dtype)
    return NoConditioner()
