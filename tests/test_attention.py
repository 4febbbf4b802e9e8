"""Attention: a convex mixture of values, blind to the order of keys, that looks at the context it is given."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import apply, compiled, param_shapes, random_array, random_params, replaced

from ldm_jax.nn.attention import (
    Attention,
    FeedForward,
    SelfAttentionBlock,
    SpatialTransformer,
    TransformerBlock,
)
from ldm_jax.nn.dot_product_attention import dot_product_attention

QUERY, KEY, VALUE = random_array(2, 5, 3, 4), random_array(2, 7, 3, 4, seed=1), random_array(2, 7, 3, 4, seed=2)
TOKENS, CONTEXT = random_array(2, 6, 8), random_array(2, 3, 5, seed=1)
MAP = random_array(2, 2, 3, 8)
attend = compiled(dot_product_attention)


def test_it_is_the_equation_in_float64() -> None:
    q, k, v = (np.asarray(a, np.float64) for a in (QUERY, KEY, VALUE))
    logits = np.einsum("bqnd,bknd->bnqk", q, k) / 2.0  # the square root of 4
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.einsum("bnqk,bknd->bqnd", weights, v)
    np.testing.assert_allclose(attend(QUERY, KEY, VALUE), expected, atol=1e-6)


def test_the_order_of_keys_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(7)
    expected = attend(QUERY, KEY, VALUE)
    np.testing.assert_allclose(attend(QUERY, KEY[:, order], VALUE[:, order]), expected, atol=1e-6)


def test_results_lie_between_the_values() -> None:
    result = attend(5 * QUERY, KEY, VALUE)
    low, high = VALUE.min(axis=1, keepdims=True), VALUE.max(axis=1, keepdims=True)
    assert np.all(result >= low - 1e-6) and np.all(result <= high + 1e-6)


def test_extreme_queries_average_or_pick() -> None:
    mean = np.broadcast_to(VALUE.mean(axis=1, keepdims=True), QUERY.shape)
    np.testing.assert_allclose(attend(np.zeros_like(QUERY), KEY, VALUE), mean, atol=1e-6)
    picked = attend(1e6 * QUERY, KEY, VALUE)  # logits far beyond the range of exp
    best = np.argmax(np.einsum("bqnd,bknd->bqnk", QUERY, KEY), axis=-1)
    expected = np.take_along_axis(VALUE, best[..., None], axis=1)
    np.testing.assert_allclose(picked, expected, atol=1e-5)


def test_bfloat16_inputs_have_a_float32_softmax() -> None:
    """With 4096 equal keys the weights' sum is far from 1 when it is accumulated in bfloat16."""
    query, key = np.zeros((1, 1, 1, 4), jnp.bfloat16), np.ones((1, 4096, 1, 4), jnp.bfloat16)
    result = attend(query, key, key)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(np.float32), 1.0, rtol=0.01)


def test_self_attention_is_attention_to_oneself() -> None:
    params = random_params(Attention(2), TOKENS)
    itself = compiled(lambda p, x: Attention(2).apply({"params": p}, x, x))(params, TOKENS)
    np.testing.assert_allclose(apply(Attention(2), params, TOKENS), itself, atol=1e-6)


def test_only_keys_and_values_have_the_width_of_the_context() -> None:
    shapes = param_shapes(Attention(2), TOKENS, CONTEXT)
    assert shapes == {
        "query/kernel": (8, 8),
        "key/kernel": (5, 8),
        "value/kernel": (5, 8),
        "out/kernel": (8, 8),
        "out/bias": (8,),
    }
    with_bias = param_shapes(Attention(2, use_bias=True), TOKENS)
    assert set(with_bias) - set(shapes) == {"query/bias", "key/bias", "value/bias"}


def test_heads_split_the_channels_and_change_the_result() -> None:
    params = random_params(Attention(1), TOKENS)
    one, two, four = (apply(Attention(heads), params, TOKENS) for heads in (1, 2, 4))
    assert not np.allclose(one, two) and not np.allclose(two, four)
    assert param_shapes(Attention(4), TOKENS) == param_shapes(Attention(1), TOKENS)


@pytest.mark.parametrize("activation", ["geglu", "gelu", "quick_gelu"])
def test_the_feed_forward_layers_are_those_of_their_formulas(activation) -> None:
    layers = FeedForward(activation)
    params = random_params(layers, TOKENS)
    h = np.asarray(TOKENS, np.float64) @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]
    assert h.shape[-1] == (64 if activation == "geglu" else 32)
    value, gate = (h[..., :32], h[..., 32:]) if activation == "geglu" else (1.0, h)
    share = 1 / (1 + np.exp(-1.702 * gate)) if activation == "quick_gelu" else gaussian(gate)
    expected = (value * gate * share) @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
    np.testing.assert_allclose(apply(layers, params, TOKENS), expected, atol=2e-5)


def gaussian(x: np.ndarray) -> np.ndarray:
    """The distribution function of the standard normal."""
    return 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def test_causal_attention_sees_nothing_that_comes_later() -> None:
    params = random_params(Attention(2, causal=True), TOKENS)
    causal = compiled(lambda x: Attention(2, causal=True).apply({"params": params}, x))
    changed = replaced(TOKENS, (slice(None), 3), 9.0)
    before, after = causal(TOKENS), causal(changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.isclose(before[:, 3:], after[:, 3:]).all(axis=-1).any()


def test_heads_may_be_narrower_than_their_share_of_the_channels() -> None:
    shapes = param_shapes(Attention(2, num_head_channels=3), TOKENS)
    assert shapes["query/kernel"] == (TOKENS.shape[-1], 6) and shapes["out/kernel"] == (6, TOKENS.shape[-1])


@pytest.fixture(scope="module")
def transformer_block():
    params = random_params(TransformerBlock(2), TOKENS, CONTEXT)
    block = compiled(lambda x, context: TransformerBlock(2).apply({"params": params}, x, context))
    return block


def test_a_transformer_block_moves_with_its_tokens(transformer_block) -> None:
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(
        transformer_block(TOKENS[:, order], CONTEXT), transformer_block(TOKENS, CONTEXT)[:, order], atol=1e-5
    )


def test_a_transformer_block_in_bfloat16_is_close(transformer_block) -> None:
    params = random_params(TransformerBlock(2), TOKENS, CONTEXT)
    exact = transformer_block(TOKENS, CONTEXT)
    rounded = apply(TransformerBlock(2, dtype=jnp.bfloat16), params, TOKENS, CONTEXT)
    assert 1e-4 < np.sqrt(np.mean(np.square(rounded - exact))) < 0.03 * np.std(exact)


def test_a_transformer_block_sees_its_own_samples_context(transformer_block) -> None:
    before, after = transformer_block(TOKENS, CONTEXT), transformer_block(TOKENS, replaced(CONTEXT, 1, CONTEXT[1] + 1))
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    assert np.abs(after[1] - before[1]).max() > 1e-2


def test_without_a_context_the_second_attention_looks_at_the_tokens() -> None:
    assert param_shapes(TransformerBlock(2), TOKENS)["cross_attention/key/kernel"] == (8, 8)


def test_blocks_on_maps_start_as_the_identity() -> None:
    for block in (SelfAttentionBlock(2, 4, zero_init=True), SpatialTransformer(2, num_groups=4)):
        first = compiled(lambda x, block=block: block.apply(block.init(jax.random.key(0), x), x))(MAP)
        np.testing.assert_array_equal(first, MAP)


@pytest.mark.parametrize("block", [SelfAttentionBlock(2, 4), SpatialTransformer(2, num_groups=4)])
def test_blocks_on_maps_know_no_positions_and_any_number_of_axes(block) -> None:
    params = random_params(block, MAP)
    y = apply(block, params, MAP)
    flipped = apply(block, params, MAP[:, ::-1])
    np.testing.assert_allclose(flipped, y[:, ::-1], atol=1e-5)
    if isinstance(block, SelfAttentionBlock):
        np.testing.assert_allclose(apply(block, params, MAP.reshape(2, 6, 8)), y.reshape(2, 6, 8), atol=1e-5)
        np.testing.assert_allclose(apply(block, params, MAP.reshape(2, 1, 2, 3, 8))[:, 0], y, atol=1e-5)


def test_a_block_without_groups_does_not_normalise() -> None:
    """The attention sees the map as it is: the block is the attention beside a skip connection."""
    params = random_params(SelfAttentionBlock(2, 0), MAP)
    assert set(params) == {"attention"}
    tokens = MAP.reshape(2, 6, 8)
    attended = apply(Attention(2, use_bias=True), params["attention"], tokens)
    np.testing.assert_allclose(apply(SelfAttentionBlock(2, 0), params, tokens), tokens + attended, atol=1e-5)


def test_a_dense_projection_is_a_convolution_of_one_position() -> None:
    convolving, dense = (SpatialTransformer(2, 2, linear, num_groups=4) for linear in (False, True))
    params = random_params(convolving, MAP, CONTEXT)
    flat = dict(params)
    for name in ("project_in", "project_out"):
        assert params[name]["kernel"].shape == (1, 1, 8, 8)
        flat[name] = {**params[name], "kernel": params[name]["kernel"][0, 0]}
    assert jax.tree.map(jnp.shape, flat) == jax.tree.map(jnp.shape, random_params(dense, MAP, CONTEXT))
    np.testing.assert_allclose(apply(dense, flat, MAP, CONTEXT), apply(convolving, params, MAP, CONTEXT), atol=1e-5)


def test_depth_counts_transformer_blocks() -> None:
    paths = param_shapes(SpatialTransformer(2, 3, num_groups=4), MAP, CONTEXT)
    assert {path.split("/")[0] for path in paths} == {
        *("norm", "project_in", "project_out"),
        *map("block_{}".format, range(3)),
    }
    assert "block_2/cross_attention/query/kernel" in paths
