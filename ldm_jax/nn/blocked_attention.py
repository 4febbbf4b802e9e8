"""Attention written in plain array operations: in one piece, and a few queries at a time.

The softmax runs over keys, so queries are independent: a block of them needs [block, k] weights and no running maximum
(Rabe and Staats 2021, arXiv:2112.05682, section 2, splits keys as well). The gradient computes each block's weights
again. With the number of queries in a block inverse to the number of keys, memory for weights is constant in both; from
4096 keys on it grows with them, and stays below what the keys take.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK_WEIGHTS = 2**18
"""Weights of one head in one block: 1 MiB in float32."""

LEAST_QUERIES = 64
"""Queries in a block however many keys there are: all keys and values are read for each block."""


def reference_attention(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    *,
    causal: bool = False,
) -> Float[Array, "b q n d"]:
    """Attention in one piece: products in the inputs' type, softmax in float32."""
    positions = jnp.arange(query.shape[1])
    return _attend(query, key, value, positions if causal else None)


def blocked_attention(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    *,
    causal: bool = False,
    block_weights: int | None = None,
) -> Float[Array, "b q n d"]:
    """The same attention, forward and backward in memory for `block_weights` weights of each sample and head.

    Left out, they are BLOCK_WEIGHTS, or what LEAST_QUERIES need where that is more.
    """
    length = query.shape[1]
    weights = max(BLOCK_WEIGHTS, LEAST_QUERIES * key.shape[1]) if block_weights is None else block_weights
    block = max(weights // key.shape[1], 1)
    if block >= length:
        return reference_attention(query, key, value, causal=causal)
    count = -(-length // block)
    padded = jnp.pad(query, ((0, 0), (0, count * block - length), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(query.shape[0], count, block, *query.shape[2:]), 1, 0)
    positions = jnp.arange(count * block).reshape(count, block)
    # The gradients of keys and values are sums over blocks: their rounding would add up in bfloat16.
    wide_key, wide_value = key.astype(jnp.float32), value.astype(jnp.float32)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(queries: Float[Array, "b block n d"], rows: Int[Array, " block"]) -> Float[Array, "b block n d"]:
        return _attend(queries, wide_key.astype(key.dtype), wide_value.astype(value.dtype), rows if causal else None)

    attended = jax.lax.map(lambda inputs: one(*inputs), (blocks, positions))
    return jnp.moveaxis(attended, 0, 1).reshape(padded.shape)[:, :length]


def _attend(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    rows: Int[Array, " q"] | None,
) -> Float[Array, "b q n d"]:
    """Attention of queries at the positions `rows`, which see no later key; None sees all."""
    logits = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if rows is not None:
        logits = jnp.where(jnp.arange(key.shape[1]) <= rows[:, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, value)
