"""Conditioners: what a class and a prompt become, what stands for none, and which samples lose their condition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from module_trials import abstract_call, apply, compiled, param_shapes, random_params, replaced

from ldm_jax.conditioning.build import make_conditioner
from ldm_jax.conditioning.classes import ClassEmbedder
from ldm_jax.conditioning.conditions import Conditions, drop_inputs
from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.conditioning.tokenizer import BEGIN, END, PAD
from ldm_jax.conditioning.unconditional import NoConditioner
from ldm_jax.config import ClassConditioning, TextConditioning, Unconditional
from ldm_jax.errors import UserError

TEXT = TextConditioning(vocab_size=20, context_length=6, context_dim=8, num_layers=2, num_heads=2)
SIZES = {"image_size": 8, "latent_size": (4, 4)}
CLASSES = ClassConditioning(num_classes=4, context_dim=8)
TOKENS = np.array([[1, 7, 8, 9, 2, 0], [1, 7, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]])


drop_some = compiled(drop_inputs)


@settings(max_examples=20)
@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_exactly_the_chosen_samples_lose_their_condition(drop: list[bool]) -> None:
    inputs = {"tokens": np.arange(12).reshape(4, 3) + 100, "class_labels": np.arange(4) + 50}
    null = {"tokens": np.zeros((4, 3), np.int32), "class_labels": np.full(4, 9)}
    dropped = drop_some(inputs, null, np.array(drop))
    for name in inputs:
        for i, gone in enumerate(drop):
            np.testing.assert_array_equal(dropped[name][i], (null if gone else inputs)[name][i])


def test_nothing_can_be_dropped_from_nothing() -> None:
    assert drop_inputs({}, {}, jnp.array([True, False])) == {}


@pytest.mark.parametrize(
    ("config", "kind"), [(TEXT, TextTransformer), (CLASSES, ClassEmbedder), (Unconditional(), NoConditioner)]
)
def test_each_configuration_has_its_conditioner(config, kind: type) -> None:
    conditioner = make_conditioner(config, "float32", **SIZES)
    assert type(conditioner) is kind
    conditions, params = abstract_call(conditioner, conditioner.null_inputs(3))
    if kind is NoConditioner:
        assert conditions == Conditions() and params == {}
    else:
        assert conditions.context.shape == (3, 1 if kind is ClassEmbedder else 6, 8)
        assert (conditions.class_labels is None) == (kind is not ClassEmbedder)
        assert conditions.concat is None


def test_no_class_is_one_entry_behind_the_classes() -> None:
    embedder = ClassEmbedder(CLASSES)
    null = embedder.null_inputs(2)
    np.testing.assert_array_equal(null["class_labels"], [4, 4])
    assert param_shapes(embedder, null) == {"embedding/embedding": (5, 8)}


def test_a_class_is_its_row_of_the_table() -> None:
    embedder, labels = ClassEmbedder(CLASSES), np.array([2, 0, 4])
    params = random_params(embedder, {"class_labels": labels})
    context = apply(embedder, params, {"class_labels": labels}).context
    np.testing.assert_array_equal(context[:, 0], params["embedding"]["embedding"][labels])


def test_no_prompt_is_begin_and_end() -> None:
    tokens = TextTransformer(TEXT).null_inputs(2)["tokens"]
    np.testing.assert_array_equal(tokens, [[BEGIN, END, PAD, PAD, PAD, PAD]] * 2)


@pytest.fixture(scope="module")
def text_transformer():
    module = TextTransformer(TEXT)
    params = random_params(module, {"tokens": TOKENS})
    return params, compiled(lambda params, tokens: module.apply({"params": params}, {"tokens": tokens}).context)


def test_prompts_do_not_see_each_other(text_transformer) -> None:
    params, encode = text_transformer
    context = encode(params, TOKENS)
    np.testing.assert_allclose(encode(params, TOKENS[::-1])[::-1], context, atol=1e-5)
    assert np.abs(encode(params, replaced(TOKENS, (0, 2), 11))[1:] - context[1:]).max() < 1e-6


def test_every_position_sees_every_token(text_transformer) -> None:
    """There is no causal mask: a change of one token reaches all of them, before and behind."""
    params, encode = text_transformer
    change = np.abs(encode(params, replaced(TOKENS, (0, 2), 11)) - encode(params, TOKENS))[0].max(axis=-1)
    assert np.all(change > 1e-3)


def test_the_order_of_words_matters_through_the_position_embedding(text_transformer) -> None:
    params, encode = text_transformer
    swapped = TOKENS[:1, np.array([0, 2, 1, 3, 4, 5])]
    order = np.array([0, 2, 1, 3, 4, 5])
    assert np.abs(encode(params, swapped) - encode(params, TOKENS[:1])[:, order]).max() > 1e-2
    blind = {**params, "position": np.zeros_like(params["position"])}
    np.testing.assert_allclose(encode(blind, swapped), encode(blind, TOKENS[:1])[:, order], atol=1e-5)


def test_the_parameter_tree_of_the_text_transformer() -> None:
    shapes = param_shapes(TextTransformer(TEXT), {"tokens": TOKENS})
    assert shapes["token/embedding"] == (20, 8)
    assert shapes["position"] == (6, 8)
    assert shapes["layer_1/attention/query/kernel"] == (8, 8)
    assert shapes["layer_0/feed_forward/dense_0/kernel"] == (8, 32)
    assert {path.split("/")[0] for path in shapes} == {"token", "position", "layer_0", "layer_1", "norm_out"}


def test_dropout_acts_in_training_only() -> None:
    module = TextTransformer(dataclasses.replace(TEXT, dropout=0.5, num_layers=1))
    params = {"params": random_params(module, {"tokens": TOKENS})}

    def encode(tokens, seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(params, {"tokens": tokens}, train=train, rngs=rngs).context

    train = compiled(lambda tokens, seed: encode(tokens, seed, True))
    still = compiled(lambda tokens: encode(tokens, 0, False))(TOKENS)
    one, other = train(TOKENS, 0), train(TOKENS, 1)
    assert not np.allclose(one, still) and not np.allclose(one, other)


def test_dropout_acts_on_the_embedded_tokens_too() -> None:
    module = TextTransformer(dataclasses.replace(TEXT, dropout=0.5, num_layers=1))
    params = random_params(module, {"tokens": TOKENS})
    for name in ("attention/out", "feed_forward/dense_1"):  # what the sublayers add is nothing
        part, layer = name.split("/")
        params["layer_0"][part][layer] = jax.tree.map(np.zeros_like, params["layer_0"][part][layer])

    def encode(tokens, train):
        rngs = {"dropout": jax.random.key(0)}
        return module.apply({"params": params}, {"tokens": tokens}, train=train, rngs=rngs).context

    train, still = (compiled(lambda tokens, train=train: encode(tokens, train))(TOKENS) for train in (True, False))
    assert np.abs(train - still).max() > 0.1


def test_the_width_inside_the_feed_forward_layers_can_be_given() -> None:
    shapes = param_shapes(TextTransformer(dataclasses.replace(TEXT, mlp_dim=5)), {"tokens": TOKENS})
    assert shapes["layer_0/feed_forward/dense_0/kernel"] == (8, 5)


@pytest.mark.parametrize("config", [TEXT, CLASSES])
def test_bfloat16_gives_bfloat16_from_float32_parameters(config) -> None:
    conditioner = make_conditioner(config, "bfloat16", **SIZES)
    conditions, params = abstract_call(conditioner, conditioner.null_inputs(2))
    assert conditions.context.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


# --- boxes as one place each -----------------------------------------------------------------------------------------

LINES = 8
BOXES = dataclasses.replace(
    TEXT, tokens="boxes", tokens_per_box=1, vocab_size=1 + LINES**2, context_length=9, num_layers=1
)
OBJECTS = np.array([[3, 0, 27], [5, 9, 63], [64, 64, 64]])  # label, corner, corner; the last is none


def box_context(objects: np.ndarray, params: dict | None = None) -> tuple[np.ndarray, dict]:
    conditioner = make_conditioner(BOXES, "float32", **SIZES)
    inputs = {"tokens": jnp.asarray(objects.reshape(1, -1), jnp.int32)}
    params = random_params(conditioner, inputs) if params is None else params
    return np.asarray(apply(conditioner, params, inputs).context[0]), params


def test_each_object_is_one_place_of_the_context_in_any_order() -> None:
    context, params = box_context(OBJECTS)
    assert context.shape == (3, 8)
    np.testing.assert_allclose(box_context(OBJECTS[[2, 0, 1]], params)[0], context[[2, 0, 1]], atol=1e-5)
    other = OBJECTS.copy()
    other[0, 0] = 4
    assert np.abs(box_context(other, params)[0] - context)[0].max() > 1e-3, "another label"


def test_every_corner_is_told_apart_from_the_others() -> None:
    _, params = box_context(OBJECTS)
    corners = np.arange(LINES**2)
    objects = np.stack([np.full_like(corners, 3), corners, corners[::-1]], axis=-1)
    found = np.concatenate([box_context(three, params)[0] for three in objects[:63].reshape(-1, 3, 3)])
    apart = np.abs(found[:, None] - found[None]).max(axis=-1) + np.eye(63)
    assert apart.min() > 1e-3


def test_one_place_is_of_boxes_alone() -> None:
    with pytest.raises(UserError, match="tokens_per_box=1 is of tokens=boxes with a context_length that 3 divides"):
        dataclasses.replace(TEXT, tokens_per_box=1)
    with pytest.raises(UserError, match="not of boxes with 8; use 3, or change these"):
        dataclasses.replace(BOXES, context_length=8)
