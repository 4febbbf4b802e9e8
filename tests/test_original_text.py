"""Text encoders of original single files: outputs against independent references, both ways, and every refusal."""

import dataclasses

import numpy as np
import pytest
import text_references as reference
from foreign_tensors import Tensors, assert_close, assert_same_tensors, random_tensors
from module_trials import apply, compiled

from ldm_jax.conditioning.clip_text import ClipTextTransformer, SdxlConditioner
from ldm_jax.conditioning.text import TextTransformer
from ldm_jax.config import ClipTextConditioning, SdxlConditioning, TextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.original.text import (
    abstract_text_stage,
    read_text_stage_params,
    text_stage_slot,
    write_text_stage_params,
)
from ldm_jax.interop.original.text_options import TextStage, TextStageKind
from ldm_jax.interop.transformers.text import write_clip_text_config

CLIP = ClipTextConditioning(
    vocab_size=20,
    context_length=6,
    context_dim=8,
    num_layers=3,
    num_heads=2,
    begin_token=17,
    end_token=18,
    pad_token=18,
)
OPEN_CLIP = dataclasses.replace(CLIP, activation="gelu", projection_dim=8, pooled_at="largest", pad_token=0)
BERT = TextConditioning(
    vocab_size=20, context_length=6, context_dim=24, num_layers=2, num_heads=8, num_head_channels=64
)
INSIDE = {"context_layer": "penultimate", "context_norm": False}
SDXL = SdxlConditioning(
    first=dataclasses.replace(CLIP, **INSIDE), second=dataclasses.replace(OPEN_CLIP, **INSIDE), size_dim=4
)
TOKENS = np.array([[17, 7, 8, 19, 18, 18], [17, 7, 18, 3, 0, 4]])
STAGES: dict[TextStageKind, TextStage] = {
    "bert": TextStage("bert", BERT),
    "clip": TextStage("clip", CLIP),
    "open_clip": TextStage("open_clip", OPEN_CLIP),
    "sdxl": TextStage("sdxl", SDXL),
}
UNUSED = {
    "bert": ["transformer.to_logits.weight", "transformer.to_logits.bias"],
    "clip": ["transformer.text_model.embeddings.position_ids"],
    "open_clip": ["model.logit_scale", "model.attn_mask"],
    "sdxl": ["embedders.0.transformer.text_model.embeddings.position_ids", "embedders.1.model.logit_scale"],
}


def tensors_of(stage: TextStage, names: list[str] | None = None) -> Tensors:
    return random_tensors(abstract_text_stage(stage), text_stage_slot(stage.kind, names))


def without(prefix: str, tensors: Tensors) -> Tensors:
    return Tensors({name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)})


@pytest.mark.parametrize("kind", STAGES)
def test_weights_come_out_as_they_went_in(kind: TextStageKind) -> None:
    tensors = tensors_of(STAGES[kind])
    more = Tensors({**tensors, **{name: np.zeros(1) for name in UNUSED[kind]}})
    params = read_text_stage_params(more, STAGES[kind], "file")
    assert_same_tensors(write_text_stage_params(params, STAGES[kind]), tensors)


@pytest.mark.parametrize("kind", STAGES)
def test_a_tensor_too_many_is_named(kind: TextStageKind) -> None:
    tensors = tensors_of(STAGES[kind])
    other = next(name for key in STAGES if key != kind for name in UNUSED[key] if not name.startswith("embedders"))
    for name in (f"{next(iter(tensors)).split('.')[0]}.new", other):
        with pytest.raises(UserError, match=f"unexpected: {name}"):
            read_text_stage_params(Tensors({**tensors, name: np.zeros(1)}), STAGES[kind], "model.ckpt")


@pytest.mark.parametrize(("kind", "before"), [("clip", ""), ("sdxl", "embedders.0.")])
def test_files_without_text_model_in_their_names_are_read(kind: TextStageKind, before: str) -> None:
    """As transformers 5 and some programs that merge models write them."""
    tensors = tensors_of(STAGES[kind], names=[])
    assert f"{before}transformer.final_layer_norm.bias" in tensors
    params = read_text_stage_params(tensors, STAGES[kind], "file")
    assert_same_tensors(write_text_stage_params(params, STAGES[kind]), tensors_of(STAGES[kind]))


def test_query_key_and_value_are_fused_in_this_order() -> None:
    tensors = tensors_of(STAGES["open_clip"])
    params = read_text_stage_params(tensors, STAGES["open_clip"], "file")["layer_1"]["attention"]
    fused = tensors["model.transformer.resblocks.1.attn.in_proj_weight"]
    bias = tensors["model.transformer.resblocks.1.attn.in_proj_bias"]
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(params[name]["kernel"].T, fused[8 * i : 8 * (i + 1)])
        np.testing.assert_array_equal(params[name]["bias"], bias[8 * i : 8 * (i + 1)])


def test_a_fused_tensor_of_another_size_is_named() -> None:
    tensors = tensors_of(STAGES["open_clip"])
    tensors["model.transformer.resblocks.0.attn.in_proj_weight"] = np.zeros((23, 8), np.float32)
    with pytest.raises(UserError, match=r"in_proj_weight is \[23, 8\], the configuration asks for \[24, 8\]"):
        read_text_stage_params(tensors, STAGES["open_clip"], "file")


@pytest.mark.parametrize(("activation", "act"), [("gelu", reference.gelu), ("quick_gelu", reference.quick_gelu)])
@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_open_clip_gives_the_outputs_of_its_reference(activation, act, layer) -> None:
    config = dataclasses.replace(OPEN_CLIP, activation=activation, context_layer=layer)
    stage = TextStage("open_clip", config)
    tensors = tensors_of(stage)
    params, w = read_text_stage_params(tensors, stage, "file"), without("model.", tensors)
    module = ClipTextTransformer(config)
    outputs = compiled(lambda p, t: module.apply({"params": p}, t, method="encode"))(params, TOKENS)
    hidden, pooled = reference.open_clip_text(w, TOKENS, config.num_heads, act)
    for ours, theirs in zip(outputs.hidden, hidden, strict=True):
        assert_close(ours, theirs)
    assert_close(outputs.pooled, pooled)
    context = apply(module, params, {"tokens": TOKENS}).context
    assert_close(context, reference.open_clip_norm(w, hidden[-1 if layer == "last" else -2]))


def test_sdxl_gives_the_outputs_of_its_references() -> None:
    tensors = tensors_of(STAGES["sdxl"])
    params = read_text_stage_params(tensors, STAGES["sdxl"], "file")
    inputs = {"tokens": TOKENS, "tokens_2": TOKENS, "sizes": np.arange(12).reshape(2, 6)}
    conditions = apply(SdxlConditioner(SDXL, image_size=8), params, inputs)
    hidden, pooled = reference.open_clip_text(without("embedders.1.model.", tensors), TOKENS, 2, reference.gelu)
    assert_close(conditions.context[..., 8:], hidden[-2])
    assert_close(conditions.vector[:, :8], pooled)
    first = without("embedders.0.", tensors)
    alone = read_text_stage_params(first, TextStage("clip", SDXL.first), "file")
    context = apply(ClipTextTransformer(SDXL.first), alone, {"tokens": TOKENS}).context
    assert_close(conditions.context[..., :8], context)


@pytest.mark.parametrize("width", [24, 5])
def test_bert_gives_the_outputs_of_its_reference(width: int) -> None:
    """Eight heads of 64 channels whatever the width."""
    stage = TextStage("bert", dataclasses.replace(BERT, context_dim=width))
    tensors = tensors_of(stage)
    assert tensors["transformer.attn_layers.layers.2.1.to_q.weight"].shape == (512, width)
    params = read_text_stage_params(tensors, stage, "file")
    context = apply(TextTransformer(stage.config), params, {"tokens": TOKENS}).context
    assert_close(context, reference.x_transformer(without("transformer.", tensors), TOKENS))


@pytest.mark.parametrize(("kind", "before"), [("bert", "transformer."), ("open_clip", "model.")])
def test_the_references_depend_on_every_tensor(kind: TextStageKind, before: str) -> None:
    """A reference that forgot a tensor would agree with a module that forgot it too."""

    def outputs(w: Tensors) -> np.ndarray:
        if kind == "bert":
            return reference.x_transformer(w, TOKENS)
        return reference.open_clip_text(w, TOKENS, 2, reference.gelu)[1]

    tensors, numbers = without(before, tensors_of(STAGES[kind])), np.random.default_rng(0)
    expected = outputs(tensors)
    for name, value in tensors.items():
        changed = Tensors({**tensors, name: value + 0.3 * numbers.normal(size=value.shape)})
        assert np.abs(outputs(changed) - expected).max() > 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_diffusers_converts_what_is_written_to_a_model_with_the_same_outputs(seed: int) -> None:
    """SDXL's second half, by the conversion that diffusers applies to single files."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    stage = STAGES["sdxl"]
    tensors = random_tensors(abstract_text_stage(stage), text_stage_slot("sdxl"), seed)
    params = read_text_stage_params(tensors, stage, "file")
    written = {f"conditioner.{name}": torch.from_numpy(x) for name, x in write_text_stage_params(params, stage)}

    values = write_clip_text_config(SDXL.second)
    theirs = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**values)).eval()
    converted = single_file.convert_open_clip_checkpoint(theirs, written, prefix="conditioner.embedders.1.model.")
    theirs.load_state_dict(converted, strict=True)
    tokens = np.random.default_rng(seed).integers(0, 20, (3, 6))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens), output_hidden_states=True)

    inputs = {"tokens": tokens, "tokens_2": tokens, "sizes": np.zeros((3, 6), np.int32)}
    conditions = apply(SdxlConditioner(SDXL, image_size=8), params, inputs)
    assert_close(conditions.context[..., 8:], expected.hidden_states[-2])
    assert_close(conditions.vector[:, :8], expected.text_embeds)
