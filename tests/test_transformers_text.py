"""CLIP's text transformer of transformers: golden outputs, both ways, and every refusal."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from foreign_tensors import Tensors, assert_close, assert_same_tensors, random_tensors
from golden_weights import GOLDEN, golden_arrays
from module_trials import apply, compiled
from safetensors.numpy import load_file, save_file

from ldm_jax.conditioning.clip_text import ClipText, ClipTextTransformer
from ldm_jax.config import ClipTextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.transformers.text import (
    abstract_clip_text,
    clip_text_slot,
    end_at_context,
    read_clip_text,
    read_clip_text_config,
    sdxl_conditioning,
    write_clip_text,
    write_clip_text_config,
)

FOLDER = GOLDEN / "clip_text"
GOLDEN_CONFIG = json.loads((FOLDER / "config.json").read_text())
CONFIG = ClipTextConditioning(
    vocab_size=20,
    context_length=6,
    context_dim=8,
    num_layers=3,
    num_heads=2,
    mlp_dim=12,
    activation="gelu",
    begin_token=17,
    end_token=18,
    pad_token=18,
)
PROJECTED = dataclasses.replace(CONFIG, projection_dim=5)


def encode(config: ClipTextConditioning, params: Any, tokens: np.ndarray) -> ClipText:
    module = ClipTextTransformer(config)
    return compiled(lambda p, t: module.apply({"params": p}, t, method="encode"))(params, tokens)


def with_options(**changes: Any) -> dict[str, Any]:
    return {**write_clip_text_config(CONFIG), **changes}


def test_golden_outputs() -> None:
    config = read_clip_text_config(GOLDEN_CONFIG, "config.json")
    params = read_clip_text(Tensors(load_file(FOLDER / "model.safetensors")), config, "model.safetensors")
    arrays = golden_arrays("clip_text")
    outputs = encode(config, params, arrays["input_ids"])
    assert_close(outputs.last, arrays["last_hidden_state"])
    assert_close(outputs.hidden[-2], arrays["penultimate"])
    assert_close(outputs.pooled, arrays["pooler_output"])


def test_the_golden_configuration() -> None:
    marks = {"begin_token": 0, "end_token": 98, "pad_token": 98}
    sizes = {"vocab_size": 99, "context_length": 16, "context_dim": 32, "num_layers": 3, "num_heads": 4, "mlp_dim": 64}
    assert read_clip_text_config(GOLDEN_CONFIG, "config.json") == ClipTextConditioning(**sizes, **marks)


def test_the_text_encoder_of_a_pipeline_comes_out_as_it_went_in() -> None:
    folder = GOLDEN / "pipeline_sd1/text_encoder"
    config = read_clip_text_config(json.loads((folder / "config.json").read_text()), "config.json")
    assert (config.begin_token, config.end_token, config.pad_token, config.num_layers) == (525, 526, 526, 2)
    weights = load_file(folder / "model.safetensors")
    usual = {f"text_model.{name}": value for name, value in weights.items()}  # transformers 5 left the prefix out
    assert_same_tensors(write_clip_text(read_clip_text(Tensors(weights), config, "file")), usual)


@pytest.mark.parametrize("config", [CONFIG, PROJECTED])
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_weights_of_both_spellings_come_out_as_they_went_in(config, prefix: str) -> None:
    tensors = random_tensors(abstract_clip_text(config), clip_text_slot(prefix))
    usual = random_tensors(abstract_clip_text(config), clip_text_slot())
    tensors[f"{prefix}embeddings.position_ids"] = np.arange(6)[None]  # files of transformers before 4.31
    assert_same_tensors(write_clip_text(read_clip_text(tensors, config, "file")), usual)


def test_the_text_half_of_a_whole_clip_model_is_read() -> None:
    tensors = random_tensors(abstract_clip_text(PROJECTED), clip_text_slot())
    rest = ("logit_scale", "visual_projection.weight", "vision_model.pre_layrnorm.bias")
    whole = Tensors({**tensors, **{name: np.zeros(1) for name in rest}})
    assert_same_tensors(write_clip_text(read_clip_text(whole, PROJECTED, "file")), tensors)


def test_weights_that_do_not_fit_are_named() -> None:
    tensors = random_tensors(abstract_clip_text(CONFIG), clip_text_slot())
    del tensors["text_model.final_layer_norm.bias"]
    tensors["text_model.embeddings.token_embedding.weight"] = np.zeros((21, 8), np.float32)
    tensors["text_projection.weight"] = np.zeros((5, 8), np.float32)
    with pytest.raises(UserError) as error:
        read_clip_text(tensors, CONFIG, "model.safetensors")
    assert str(error.value).splitlines() == [
        "model.safetensors does not hold the weights that its configuration describes:",
        "  missing: text_model.final_layer_norm.bias",
        "  unexpected: text_projection.weight",
        "  wrong shape: text_model.embeddings.token_embedding.weight is [21, 8], the configuration asks for [20, 8]",
    ]


@pytest.mark.parametrize("config", [CONFIG, PROJECTED, dataclasses.replace(CONFIG, activation="quick_gelu")])
def test_a_configuration_comes_back(config) -> None:
    assert read_clip_text_config(write_clip_text_config(config), "config.json") == config


def test_four_times_the_width_is_written_as_a_number() -> None:
    config = dataclasses.replace(CONFIG, mlp_dim=None)
    assert read_clip_text_config(write_clip_text_config(config), "x") == dataclasses.replace(CONFIG, mlp_dim=32)


def test_an_old_end_mark_means_the_largest_id() -> None:
    """Files of transformers before 4.32 say bos 0, eos 2 and pad 1 whatever the vocabulary."""
    config = read_clip_text_config(with_options(bos_token_id=0, eos_token_id=2, pad_token_id=1), "x")
    assert config == dataclasses.replace(CONFIG, pooled_at="largest", begin_token=18, end_token=19, pad_token=19)
    assert write_clip_text_config(config)["eos_token_id"] == 2


def test_marks_outside_of_the_vocabulary_are_replaced() -> None:
    config = read_clip_text_config(with_options(bos_token_id=None, pad_token_id=49407), "x")
    assert (config.begin_token, config.end_token, config.pad_token) == (18, 18, 18)


def test_defaults_are_those_of_transformers() -> None:
    config = read_clip_text_config({"architectures": ["CLIPTextModelWithProjection"]}, "x")
    assert (config.context_dim, config.num_layers, config.num_heads, config.mlp_dim) == (512, 12, 8, 2048)
    assert (config.vocab_size, config.context_length, config.projection_dim) == (49408, 77, 512)
    assert (config.activation, config.norm_epsilon, config.end_token) == ("quick_gelu", 1e-5, 49407)


def test_the_class_may_be_named_elsewhere() -> None:
    values = with_options(architectures=None, projection_dim=5)
    assert read_clip_text_config(values, "x", architecture="CLIPTextModelWithProjection") == PROJECTED
    assert read_clip_text_config(values, "x", architecture="CLIPTextModel") == CONFIG


@pytest.mark.parametrize(
    "tables",
    [
        lambda text: {"text_config": text},
        lambda text: {"text_config": None, "text_config_dict": text},
        # in transformers the second table replaces the first
        lambda text: {"text_config": {"hidden_size": 4}, "text_config_dict": text},
    ],
)
def test_a_whole_clip_model_has_its_text_half_in_a_table(tables) -> None:
    text = {name: value for name, value in with_options().items() if name not in ("architectures", "projection_dim")}
    whole = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **tables({**text, "is_decoder": False, "pruned_heads": {}}),
        "vision_config": {"anything": 1},
        "projection_dim": 5,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "_commit_hash": None,
    }
    assert read_clip_text_config(whole, "x") == PROJECTED
    with pytest.raises(UserError, match="x: temperature_init=1 is not supported"):
        read_clip_text_config({**whole, "temperature_init": 1}, "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["T5EncoderModel"]},
            "architectures=['T5EncoderModel'] is not supported; "
            "use one of CLIPTextModel, CLIPTextModelWithProjection, CLIPModel",
        ),
        ({"architectures": None}, "architectures=[] is not supported; use one of CLIPTextModel, "),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; use 'quick_gelu' or 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported; only 0.0 can be imported"),
        ({"dropout": 0.1}, "dropout=0.1 is not supported; only 0.0 can be imported"),
        (
            {"eos_token_id": 20},
            "eos_token_id=20 is not supported; it has to be in the vocabulary of 20, or 2 for the largest id",
        ),
        ({"eos_token_id": [18]}, "eos_token_id=[18] is not supported; it has to be a whole number"),
        ({"hidden_size": "8"}, "hidden_size='8' is not supported; it has to be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not supported; it has to be at least 1"),
        ({"is_decoder": True}, "is_decoder=True is not supported; only False can be imported"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported; only False can be imported"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads={'0': [1]} is not supported; only {} and None can be imported"),
        ({"rope_theta": 1e4}, "rope_theta=10000.0 is not supported; no such option of this model is known"),
        ({"num_attention_heads": 3}, "ClipTextConditioning.num_heads=3 does not divide context_dim=8; nearest"),
    ],
)
def test_an_option_that_asks_for_something_else_is_refused(changes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_clip_text_config(with_options(**changes), "config.json")
    assert str(error.value).startswith(f"config.json: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"context_layer": "penultimate"},
            "context_layer=penultimate with context_norm=True cannot be written for transformers",
        ),
        ({"context_norm": False}, "context_layer=last with context_norm=False cannot be written for transformers"),
        ({"end_token": 2}, "end_token=2 with pooled_at=end cannot be written for transformers"),
    ],
)
def test_what_transformers_cannot_express_is_not_written(changes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_clip_text_config(dataclasses.replace(CONFIG, **changes))


def test_sdxl_takes_the_penultimate_layer_without_the_norm() -> None:
    conditioning = sdxl_conditioning(CONFIG, PROJECTED, 16)
    assert (conditioning.context_dim, conditioning.vector_dim) == (16, 5 + 6 * 16)
    for config in (conditioning.first, conditioning.second):
        assert (config.context_layer, config.context_norm) == ("penultimate", False)


def test_ending_at_the_context_leaves_it_as_it_is() -> None:
    config = dataclasses.replace(PROJECTED, context_layer="penultimate")
    tensors = random_tensors(abstract_clip_text(config), clip_text_slot())
    params = read_clip_text(tensors, config, "file")
    shorter, fewer = end_at_context(config, params)
    assert shorter == dataclasses.replace(CONFIG, num_layers=2)
    assert read_clip_text(Tensors(write_clip_text(fewer)), shorter, "file").keys() == fewer.keys()
    tokens = np.array([[17, 3, 4, 18, 18, 18]])
    contexts = [
        apply(ClipTextTransformer(c), p, {"tokens": tokens}).context for c, p in ((config, params), (shorter, fewer))
    ]
    np.testing.assert_allclose(contexts[0], contexts[1], atol=1e-6)
    with pytest.raises(UserError, match="context_layer=last, context_norm=True and num_layers=2 leave no layer out"):
        end_at_context(shorter, fewer)


# --- against transformers ---------------------------------------------------------------------------------------------


def random_case(seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Options of a small model, and token ids with and without an end mark, some with several."""
    numbers = np.random.default_rng(seed)
    heads = int(numbers.integers(1, 5))
    vocab_size = int(numbers.integers(12, 60))
    length = int(numbers.integers(3, 12))
    options = {
        "vocab_size": vocab_size,
        "hidden_size": heads * int(numbers.integers(2, 9)),
        "intermediate_size": int(numbers.integers(3, 40)),
        "projection_dim": int(numbers.integers(2, 20)),
        "num_hidden_layers": int(numbers.integers(1, 4)),
        "num_attention_heads": heads,
        "max_position_embeddings": length,
        "hidden_act": str(numbers.choice(["quick_gelu", "gelu"])),
        "layer_norm_eps": float(numbers.choice([1e-5, 1e-6, 1e-3])),
        "bos_token_id": 0,
        "eos_token_id": int(numbers.choice([2, vocab_size - 1, vocab_size - 3])),
        "pad_token_id": 1,
    }
    return options, numbers.integers(0, vocab_size, (3, length - int(numbers.integers(0, 2))))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"])
def test_outputs_are_those_of_transformers_both_ways(name: str, seed: int, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    options, tokens = random_case(seed)
    torch.manual_seed(seed)
    model = _torch_model(transformers, name, options)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.eval().save_pretrained(tmp_path / "theirs")

    config = read_clip_text_config(json.loads((tmp_path / "theirs/config.json").read_text()), "config.json")
    params = read_clip_text(Tensors(load_file(tmp_path / "theirs/model.safetensors")), config, "model.safetensors")
    ours = encode(config, params, tokens)
    _assert_same_outputs(torch, model, tokens, ours)

    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/config.json").write_text(json.dumps(write_clip_text_config(config)))
    save_file(dict(write_clip_text(params)), tmp_path / "ours/model.safetensors", {"format": "pt"})
    kind = "CLIPTextModel" if config.projection_dim is None else "CLIPTextModelWithProjection"
    again, report = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _assert_same_outputs(torch, again.eval(), tokens, ours)


def _torch_model(transformers: Any, name: str, options: dict[str, Any]) -> Any:
    if name != "CLIPModel":
        return getattr(transformers, name)(transformers.CLIPTextConfig(**options))
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    projection_dim = options["projection_dim"]
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=options, vision_config=vision, projection_dim=projection_dim)
    )


def _assert_same_outputs(torch: Any, model: Any, tokens: np.ndarray, ours: ClipText) -> None:
    ids = torch.from_numpy(tokens)
    text = getattr(model, "text_model", model)
    with torch.no_grad():
        theirs = text(ids, output_hidden_states=True)
        if hasattr(model, "text_projection"):
            assert_close(ours.pooled, model.text_projection(theirs.pooler_output))
        if type(model).__name__ == "CLIPTextModelWithProjection":
            assert_close(ours.pooled, model(ids).text_embeds)
    assert_close(ours.last, theirs.last_hidden_state)
    assert_close(ours.unprojected, theirs.pooler_output)
    assert len(ours.hidden) == len(theirs.hidden_states)
    for mine, other in zip(ours.hidden, theirs.hidden_states, strict=True):
        assert_close(mine, other)
