"""Attention as a CPU computes it is the reference's, forward and backward."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import compiled, random_array

from ldm_jax import sharding
from ldm_jax.config import MeshConfig
from ldm_jax.nn.cpu_attention import LONG, cpu_attention
from ldm_jax.nn.dot_product_attention import AttentionKernel, dot_product_attention

SHORT_AND_LONG = [(6, 7), (4 * LONG // 64, 64)]
"""Queries and keys: computed in one piece, and four of the six heads at a time."""


def reference(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Softmax, then the mixture of values."""
    logits = jnp.einsum("bqnd,bknd->bnqk", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bnqk,bknd->bqnd", jax.nn.softmax(logits, axis=-1), value)


def inputs(queries: int, keys: int) -> list[np.ndarray]:
    """Query, key, value, and a cotangent."""
    return [random_array(2, length, 3, 4, seed=i) for i, length in enumerate((queries, keys, keys, queries))]


@pytest.mark.parametrize(("queries", "keys"), SHORT_AND_LONG)
def test_values_and_gradients_are_the_references(queries: int, keys: int) -> None:
    *arrays, cotangent = inputs(queries, keys)

    def with_gradients(attend: Callable[..., jax.Array]) -> list[jax.Array]:
        output, pullback = jax.vjp(attend, *map(jnp.asarray, arrays))
        return [output, *pullback(jnp.asarray(cotangent))]

    found, expected = (jax.jit(lambda f=f: with_gradients(f))() for f in (cpu_attention, reference))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), SHORT_AND_LONG)
def test_logits_beyond_the_range_of_exp_pick_the_best_key(queries: int, keys: int) -> None:
    query, key, value, _ = inputs(queries, keys)
    picked = compiled(cpu_attention)(1e8 * query, key, value)
    best = np.argmax(np.einsum("bqnd,bknd->bqnk", query, key), axis=-1)
    expected = np.take_along_axis(value, best[..., None], axis=1)
    np.testing.assert_allclose(picked, expected, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), SHORT_AND_LONG)
def test_bfloat16_stays_near_float32(queries: int, keys: int) -> None:
    arrays = inputs(queries, keys)[:3]
    found = compiled(cpu_attention)(*(x.astype(jnp.bfloat16) for x in arrays))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), reference(*map(jnp.asarray, arrays)), atol=0.05)


def test_weights_of_long_sequences_are_not_kept_for_the_gradient() -> None:
    query, key, value, _ = map(jnp.asarray, inputs(*SHORT_AND_LONG[1]))
    _, pullback = jax.vjp(cpu_attention, query, key, value)
    assert max(leaf.size for leaf in jax.tree.leaves(pullback)) <= query.size


def test_with_a_mask_the_reference_is_taken() -> None:
    query = jnp.zeros((1, 8, 1, 4))
    assert AttentionKernel("cpu").for_shapes(query, causal=True) == "reference"
    assert AttentionKernel("cpu").for_shapes(query, causal=False) == "cpu"


def test_heads_are_not_gathered_from_devices_that_hold_others() -> None:
    mesh = sharding.make_mesh(MeshConfig())
    arrays = [np.repeat(x, 8 // len(x), axis=0) for x in inputs(*SHORT_AND_LONG[1])[:3]]
    split = sharding.place_batch(mesh, [jnp.asarray(x) for x in arrays])
    attend = jax.jit(partial(dot_product_attention, kernel=AttentionKernel("cpu", mesh)))
    assert "all-gather" not in attend.lower(*split).compile().as_text()
    np.testing.assert_allclose(attend(*split), reference(*map(jnp.asarray, arrays)), atol=1e-5)
