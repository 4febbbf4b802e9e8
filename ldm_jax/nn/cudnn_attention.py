"""Attention in cuDNN's fused kernel: 16-bit types, heads whose width is a multiple of 8 and at most 128.

Keys are padded to a multiple of 64 and hidden by their count, which is what 77 tokens of text need; the width of a head
is padded with zeros, which change no product.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_CUDNN_HEAD = 128
"""Widest head of the kernel's gradient before Hopper, and for any device that is only planned with."""

_LENGTH_MULTIPLE, _WIDTH_MULTIPLE = 64, 8


def cudnn_attention(
    query: Float[Array, "b q n d"], key: Float[Array, "b k n d"], value: Float[Array, "b k n d"]
) -> Float[Array, "b q n d"]:
    """Attention of bfloat16 or float16 arrays on an NVIDIA GPU."""
    (batch, queries, _, width), keys = query.shape, key.shape[1]
    query, key, value = (_pad(x) for x in (query, key, value))
    padded = query.shape[1] != queries or key.shape[1] != keys
    attended = jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=width**-0.5,
        query_seq_lengths=jnp.full((batch,), queries, jnp.int32) if padded else None,
        key_value_seq_lengths=jnp.full((batch,), keys, jnp.int32) if padded else None,
        implementation="cudnn",
    )
    return attended[:, :queries, :, :width]


def _pad(x: Float[Array, "b l n d"]) -> Float[Array, "b m n e"]:
    """Zeros behind the last position and behind the last channel of each head."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LENGTH_MULTIPLE), (0, 0), (0, -x.shape[-1] % _WIDTH_MULTIPLE)))
