"""CLIP's text transformer and SDXL's pair: what a token reaches, which output is the context, where text is read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import abstract_call, apply, compiled, num_params, param_shapes, random_params, replaced

from ldm_jax.conditioning.build import make_conditioner
from ldm_jax.conditioning.clip_text import ClipTextTransformer, SdxlConditioner
from ldm_jax.config import ClipTextConditioning, SdxlConditioning
from ldm_jax.nn.embeddings import sinusoidal_embedding

CONFIG = ClipTextConditioning(
    vocab_size=20,
    context_length=6,
    context_dim=8,
    num_layers=2,
    num_heads=2,
    mlp_dim=12,
    begin_token=17,
    end_token=18,
    pad_token=18,
)
TOKENS = np.array([[17, 7, 8, 9, 18, 18], [17, 7, 18, 18, 18, 18]])
# 19 is the largest id and not the end mark; the first row has it before the mark, the second behind
UNUSUAL = np.array([[17, 19, 8, 18, 3, 18], [17, 7, 18, 4, 19, 2]])


def outputs_of(config: ClipTextConditioning, tokens: np.ndarray, params: dict | None = None):
    """Parameters, the context, and all outputs."""
    module = ClipTextTransformer(config)
    params = params or random_params(module, {"tokens": tokens})

    def encode(params, tokens):
        outputs = module.apply({"params": params}, tokens, method="encode")
        return module.apply({"params": params}, {"tokens": tokens}).context, outputs

    return params, *compiled(encode)(params, tokens)


def exact_outputs_of(config: ClipTextConditioning, tokens: np.ndarray, params: dict | None = None):
    """Parameters and all outputs, one operation after the other: a fused one may round a part of itself otherwise."""
    module = ClipTextTransformer(config)
    params = params or random_params(module, {"tokens": tokens})
    return params, module.apply({"params": jax.tree.map(jnp.asarray, params)}, jnp.asarray(tokens), method="encode")


@pytest.fixture(scope="module")
def trial():
    return outputs_of(CONFIG, TOKENS)


def test_a_later_token_never_changes_earlier_outputs(trial) -> None:
    params, _, outputs = trial
    _, _, changed = outputs_of(CONFIG, replaced(TOKENS, (0, 3), 2), params)
    for before, after in zip((*outputs.hidden, outputs.last), (*changed.hidden, changed.last), strict=True):
        np.testing.assert_array_equal(after[0, :3], before[0, :3])
        np.testing.assert_array_equal(after[1], before[1])
    assert np.all(np.abs(changed.last - outputs.last)[0, 3:].max(axis=-1) > 1e-3), "it reaches all that follow"


def test_a_shorter_prompt_has_the_same_outputs(trial) -> None:
    params, _, outputs = trial
    _, _, shorter = outputs_of(CONFIG, TOKENS[:, :4], params)
    np.testing.assert_allclose(shorter.last, outputs.last[:, :4], atol=1e-6)


@pytest.mark.parametrize(("pooled_at", "positions"), [("end", (3, 2)), ("largest", (1, 4))])
def test_the_text_is_read_at_the_end_mark_or_at_the_largest_id(pooled_at, positions) -> None:
    _, outputs = exact_outputs_of(dataclasses.replace(CONFIG, pooled_at=pooled_at), UNUSUAL)
    np.testing.assert_array_equal(outputs.pooled, np.asarray(outputs.last)[[0, 1], positions])
    np.testing.assert_array_equal(outputs.pooled, outputs.unprojected)


def test_both_rules_read_the_first_of_several_end_marks(trial) -> None:
    params, outputs = exact_outputs_of(CONFIG, TOKENS, trial[0])
    np.testing.assert_array_equal(outputs.pooled, np.asarray(outputs.last)[[0, 1], [4, 2]])
    _, largest = exact_outputs_of(dataclasses.replace(CONFIG, pooled_at="largest"), TOKENS, params)
    np.testing.assert_array_equal(largest.pooled, outputs.pooled)


def test_the_projection_is_one_matrix_for_the_pooled_text() -> None:
    params, context, outputs = outputs_of(dataclasses.replace(CONFIG, projection_dim=5), TOKENS)
    assert param_shapes(ClipTextTransformer(dataclasses.replace(CONFIG, projection_dim=5)), {"tokens": TOKENS})[
        "projection/kernel"
    ] == (8, 5)
    kernel = np.asarray(params["projection"]["kernel"])
    np.testing.assert_allclose(outputs.pooled, outputs.unprojected @ kernel, atol=1e-5)
    np.testing.assert_array_equal(context, outputs.last)


@pytest.mark.parametrize(("layer", "index"), [("last", -1), ("penultimate", -2)])
@pytest.mark.parametrize("norm", [True, False])
def test_the_context_is_the_chosen_layer_with_the_norm_or_without(trial, layer, index, norm) -> None:
    params, _, outputs = trial
    config = dataclasses.replace(CONFIG, context_layer=layer, context_norm=norm)
    _, context, same = outputs_of(config, TOKENS, params)
    np.testing.assert_allclose(same.last, outputs.last, atol=1e-6)
    expected = outputs.hidden[index]
    if norm:
        centred = expected - expected.mean(-1, keepdims=True)
        expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG.norm_epsilon)
        expected = expected * np.asarray(params["norm_out"]["scale"]) + np.asarray(params["norm_out"]["bias"])
    np.testing.assert_allclose(context, expected, atol=1e-5)


def test_the_parameter_tree() -> None:
    shapes = param_shapes(ClipTextTransformer(CONFIG), {"tokens": TOKENS})
    assert {path.split("/")[0] for path in shapes} == {"token", "position", "layer_0", "layer_1", "norm_out"}
    assert shapes["token/embedding"] == (20, 8) and shapes["position"] == (6, 8)
    assert shapes["layer_1/attention/query/bias"] == (8,)
    assert shapes["layer_0/feed_forward/dense_0/kernel"] == (8, 12)


def test_stable_diffusion_s_text_encoder_has_the_published_number_of_parameters() -> None:
    tokens = {"tokens": np.zeros((1, 77), np.int32)}
    assert num_params(ClipTextTransformer(ClipTextConditioning()), tokens) == 123_060_480


SDXL = SdxlConditioning(
    first=dataclasses.replace(CONFIG, context_layer="penultimate", context_norm=False),
    second=dataclasses.replace(
        CONFIG, context_dim=4, projection_dim=5, context_layer="penultimate", context_norm=False, pad_token=0
    ),
    size_dim=6,
)
SDXL_INPUTS = {
    "tokens": TOKENS,
    "tokens_2": np.array([[17, 7, 8, 9, 18, 0], [17, 7, 18, 0, 0, 0]]),
    "sizes": np.array([[64, 48, 3, 5, 32, 24], [7, 6, 5, 4, 3, 2]]),
}


def test_sdxl_puts_both_contexts_side_by_side_and_pooled_text_before_the_sizes() -> None:
    module = SdxlConditioner(SDXL, image_size=8)
    params = random_params(module, SDXL_INPUTS)
    conditions = apply(module, params, SDXL_INPUTS)
    _, first, _ = outputs_of(SDXL.first, SDXL_INPUTS["tokens"], params["first"])
    _, second, outputs = outputs_of(SDXL.second, SDXL_INPUTS["tokens_2"], params["second"])
    np.testing.assert_allclose(conditions.context, np.concatenate([first, second], axis=-1), atol=1e-6)
    assert conditions.vector.shape == (2, SDXL.vector_dim)
    np.testing.assert_allclose(conditions.vector[:, :5], outputs.pooled, atol=1e-6)
    for i in range(6):
        embedded = sinusoidal_embedding(jnp.asarray(SDXL_INPUTS["sizes"][:, i]), 6)
        np.testing.assert_allclose(conditions.vector[:, 5 + 6 * i :][:, :6], embedded, atol=1e-6)


def test_a_sample_without_prompt_has_zeros_for_text_and_keeps_its_sizes() -> None:
    module = SdxlConditioner(SDXL, image_size=8)
    null = {name: np.asarray(x) for name, x in module.null_inputs(2).items()}
    inputs = {name: np.concatenate([SDXL_INPUTS[name][:1], null[name][:1]]) for name in null}
    conditions = apply(module, random_params(module, SDXL_INPUTS), inputs)
    assert np.abs(conditions.context[0]).min() > 0 and np.abs(conditions.vector[0, :5]).min() > 0
    assert not np.any(conditions.context[1]) and not np.any(conditions.vector[1, :5])
    sizes = sinusoidal_embedding(jnp.array([8, 8, 0, 0, 8, 8]), SDXL.size_dim)
    np.testing.assert_allclose(conditions.vector[1, 5:], sizes.reshape(-1), atol=1e-6)


def test_an_empty_prompt_of_sdxl_has_each_tokenizer_s_padding() -> None:
    config = dataclasses.replace(SDXL, no_prompt="empty")
    null = make_conditioner(config, "float32", image_size=8, latent_size=(4, 4)).null_inputs(2)
    np.testing.assert_array_equal(null["tokens"], [[17, 18, 18, 18, 18, 18]] * 2)
    np.testing.assert_array_equal(null["tokens_2"], [[17, 18, 0, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(null["sizes"], [[8, 8, 0, 0, 8, 8]] * 2)


@pytest.mark.parametrize("config", [CONFIG, SDXL])
def test_bfloat16_computes_from_float32_parameters(config) -> None:
    conditioner = make_conditioner(config, "bfloat16", image_size=8, latent_size=(4, 4))
    conditions, params = abstract_call(conditioner, conditioner.null_inputs(2))
    assert conditions.context.dtype == jnp.bfloat16
    assert conditions.vector is None or conditions.vector.dtype == jnp.float32, "sizes are too large for bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
