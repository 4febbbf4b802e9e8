"""Attention in JAX's splash kernel for TPUs (jax.experimental.pallas.ops.tpu.splash_attention).

The whole of a head's keys and values stays in the core's memory while blocks of queries pass by, forward and backward:
each array is read and written once (Dao et al. 2022, arXiv:2205.14135, algorithm 1, with one block of keys in slow
memory). Keys are padded to a multiple of 128 and hidden by a mask of one block; a head's width needs no padding here,
the memory of a TPU pads it to 128 on its own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MAX_FLASH_HEAD = 256
"""Widest head whose keys, values and their gradients fit into the core's memory."""

_LANES = 128
_MAX_QUERIES, _MAX_KEYS, _MAX_KEYS_AT_ONCE = 512, 4096, 512


def flash_attention(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    *,
    interpret: bool = False,
) -> Float[Array, "b q n d"]:
    """Attention on a TPU; `interpret` runs the kernel's program anywhere, slowly."""
    queries, keys, heads = query.shape[1], key.shape[1], query.shape[2]
    by_head = [_pad_length(x).swapaxes(1, 2) for x in (query, key, value)]  # [b, n, l, d]
    by_head[0] = jax.lax.optimization_barrier(by_head[0])  # or its projection would be written in float32
    by_head[0] = (by_head[0].astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
    with jax.ensure_compile_time_eval():  # its tables are constants, also while a gradient is traced
        kernel = _kernel(heads, by_head[0].shape[2], by_head[1].shape[2], keys, interpret)
    attended = jax.vmap(kernel)(*by_head)
    return attended.swapaxes(1, 2)[:, :queries]


def _pad_length(x: Float[Array, "b l n d"]) -> Float[Array, "b m n d"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), (0, 0), (0, 0)))


def _kernel(heads: int, queries: int, keys: int, real_keys: int, interpret: bool) -> Any:
    """The kernel for padded lengths, of which the keys from `real_keys` on are hidden."""
    # Kernels take long to import, and the start of a program on a CPU or a GPU needs none.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    if real_keys == keys:
        mask: masks.Mask = masks.FullMask((queries, keys))
    else:
        mask = masks.NumpyMask(np.broadcast_to(np.arange(keys) < real_keys, (queries, keys)))
    block_q, block_kv = _divisor(queries, _MAX_QUERIES), _divisor(keys, _MAX_KEYS)
    at_once = _divisor(block_kv, _MAX_KEYS_AT_ONCE)
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=at_once,
        block_q_dkv=block_q,
        block_kv_dkv=_divisor(keys, 2048),
        block_kv_dkv_compute=_divisor(_divisor(keys, 2048), 512),
        use_fused_bwd_kernel=True,
    )
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
    )


@functools.cache
def _divisor(length: int, limit: int) -> int:
    """The largest multiple of 128 that divides `length` and is at most `limit`."""
    return max(size for size in range(_LANES, min(length, limit) + 1, _LANES) if length % size == 0)
