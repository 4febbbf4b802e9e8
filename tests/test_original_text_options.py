"""Text encoders in original YAML files: the configurations of the zoo, both ways, and every refusal."""

import dataclasses
from typing import Any

import pytest
from test_original_text import CLIP

from ldm_jax.config import ClipTextConditioning, SdxlConditioning, TextConditioning, load_experiment
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.text_options import (
    TextStage,
    model_to_write,
    read_text_stage,
    text_stage_of,
    write_text_stage,
)

MODULES = "ldm.modules.encoders.modules."
BERT = TextConditioning(
    vocab_size=30522,
    context_length=77,
    context_dim=1280,
    num_layers=32,
    num_heads=8,
    num_head_channels=64,
    begin_token=101,
    end_token=102,
    pad_token=0,
)
LAYOUT = dataclasses.replace(
    BERT,
    tokens="boxes",
    vocab_size=8192,
    context_length=92,
    context_dim=512,
    num_layers=16,
    begin_token=1,
    end_token=2,
)
SD2 = ClipTextConditioning(
    context_dim=1024,
    num_layers=24,
    num_heads=16,
    activation="gelu",
    context_layer="penultimate",
    projection_dim=1024,
    pooled_at="largest",
    pad_token=0,
)


def sdxl_entries() -> list[dict[str, Any]]:
    """As in configs/inference/sd_xl_base.yaml of generative-models."""
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    text = {"layer": "hidden", "layer_idx": 11}
    second: dict[str, Any] = {"arch": "ViT-bigG-14", "version": "laion2b_s39b_b160k", "freeze": True}
    second |= {"layer": "penultimate", "always_return_pooled": True, "legacy": False}
    entries = [("txt", "FrozenCLIPEmbedder", text), ("txt", "FrozenOpenCLIPEmbedder2", second)]
    entries += [(size, "ConcatTimestepEmbedderND", {"outdim": 256}) for size in sizes]
    return [
        {"is_trainable": False, "input_key": key, "target": f"sgm.modules.encoders.modules.{name}", "params": params}
        for key, name, params in entries
    ]


ZOO = {
    "txt2img-1p4B": ("BERTEmbedder", {"n_embed": 1280, "n_layer": 32}, TextStage("bert", BERT)),
    "layout2img": (
        "BERTEmbedder",
        {"n_embed": 512, "n_layer": 16, "vocab_size": 8192, "max_seq_len": 92, "use_tokenizer": False},
        TextStage("bert", LAYOUT),
    ),
    "sd1": ("FrozenCLIPEmbedder", {}, TextStage("clip", ClipTextConditioning())),
    "sd2": ("FrozenOpenCLIPEmbedder", {"freeze": True, "layer": "penultimate"}, TextStage("open_clip", SD2)),
    "sdxl": ("GeneralConditioner", {"emb_models": sdxl_entries()}, TextStage("sdxl", SdxlConditioning())),
}


def again(stage: TextStage) -> TextStage:
    """What comes back of a text encoder that is written."""
    target, params = write_text_stage(stage)
    return read_text_stage(target, Options(params, "again.yaml"))


def without_rule(config: Any) -> Any:
    """SDXL's default reads the pooled text at the end mark, OpenCLIP at the largest id, which are the same place."""
    if not isinstance(config, SdxlConditioning):
        return config
    return dataclasses.replace(config, second=dataclasses.replace(config.second, pooled_at="end"))


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_read(name: str) -> None:
    target, params, expected = ZOO[name]
    stage = read_text_stage(MODULES + target, Options(params, "project.yaml"))
    assert stage.kind == expected.kind
    assert without_rule(stage.config) == expected.config


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_comes_back(name: str) -> None:
    target, params, _ = ZOO[name]
    stage = read_text_stage(target, Options(params, "project.yaml"))
    written, options = write_text_stage(stage)
    assert written.endswith(f".{target}")
    assert read_text_stage(written, Options(options, "again.yaml")) == stage


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"layer": "hidden", "layer_idx": -2}, {"context_layer": "penultimate", "context_norm": False}),
        ({"layer": "hidden", "layer_idx": 11}, {"context_layer": "penultimate", "context_norm": False}),
        ({"layer": "hidden", "layer_idx": -1}, {"context_norm": False}),
        ({"layer": "hidden", "layer_idx": 12}, {"context_norm": False}),
        ({"layer": "last", "layer_idx": 5, "device": "cpu", "max_length": 77}, {}),
        (
            {"version": "openai/clip-vit-base-patch32"},
            {"context_dim": 512, "num_heads": 8},
        ),
    ],
)
def test_options_of_openai_s_clip(options, fields) -> None:
    stage = read_text_stage("FrozenCLIPEmbedder", Options(options, "x"))
    assert stage.config == ClipTextConditioning(**fields)
    assert again(stage) == stage


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({"arch": "ViT-L-14"}, "gelu"),
        ({"arch": "ViT-L-14-quickgelu"}, "quick_gelu"),
        ({"arch": "ViT-L-14", "version": "openai"}, "quick_gelu"),
    ],
)
def test_openai_s_weights_and_the_suffix_ask_for_the_quick_gelu(options, activation: str) -> None:
    stage = read_text_stage("FrozenOpenCLIPEmbedder", Options(options, "x"))
    assert isinstance(stage.config, ClipTextConditioning)
    assert (stage.config.activation, stage.config.context_dim) == (activation, 768)
    assert again(stage) == stage


@pytest.mark.parametrize("name", ["txt2img-1p4B", "layout2img", "sd1", "sdxl"])
def test_the_experiments_of_the_zoo_have_these_text_encoders(name: str) -> None:
    assert without_rule(load_experiment(f"zoo/{name}").conditioning) == without_rule(ZOO[name][2].config)


def test_an_embedder_without_tokenizer_has_no_bert_marks() -> None:
    stage = read_text_stage("TransformerEmbedder", Options({"n_embed": 8, "n_layer": 1, "vocab_size": 500}, "x"))
    assert isinstance(stage.config, TextConditioning)
    assert (stage.config.begin_token, stage.config.end_token) == (1, 2)


def test_sdxl_is_trained_or_not() -> None:
    entries = sdxl_entries()
    for entry in entries[:2]:
        entry |= {"is_trainable": True, "ucg_rate": 0.1, "legacy_ucg_value": ""}
    stage = read_text_stage("GeneralConditioner", Options({"emb_models": entries}, "x"))
    assert isinstance(stage.config, SdxlConditioning) and stage.config.trainable
    assert again(stage) == stage


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("FrozenT5Embedder", {}, "target='FrozenT5Embedder' is not supported; the text encoders that can be imported"),
        ("BERTEmbedder", {"n_layer": 1}, "n_embed is missing"),
        (
            "BERTEmbedder",
            {"n_embed": 8, "n_layer": 1, "embedding_dropout": 0.1},
            "embedding_dropout=0.1 is not supported; only 0.0 can be imported",
        ),
        (
            "TransformerEmbedder",
            {"n_embed": 8, "n_layer": 1, "vocab_size": 9, "use_tokenizer": True},
            "use_tokenizer=True is not supported; no such option of this model is known",
        ),
        ("FrozenCLIPEmbedder", {"layer": "pooled"}, "layer='pooled' is not supported; use 'last' or 'hidden'"),
        (
            "FrozenCLIPEmbedder",
            {"layer": "hidden", "layer_idx": 5},
            "layer_idx=5 is not supported; use 12 or -1 or 11 or -2",
        ),
        ("FrozenCLIPEmbedder", {"layer": "hidden"}, "layer_idx=None is not supported; use 12 or -1 or 11 or -2"),
        ("FrozenCLIPEmbedder", {"max_length": 20}, "max_length=20 is not supported; only 77 can be imported"),
        ("FrozenCLIPEmbedder", {"version": "mine"}, "version='mine' is not supported; use 'openai/clip-vit-large-p"),
        (
            "FrozenCLIPEmbedder",
            {"always_return_pooled": True},
            "always_return_pooled=True is not supported; only False can be imported",
        ),
        ("FrozenOpenCLIPEmbedder", {"arch": "RN50"}, "arch='RN50' is not supported; use ViT-H-14, ViT-bigG-14, ViT-L"),
        ("FrozenOpenCLIPEmbedder", {"layer": "pooled"}, "layer='pooled' is not supported; use 'last' or 'penultimate'"),
        ("FrozenOpenCLIPEmbedder", {"antialias": True}, "antialias=True is not supported; no such option"),
    ],
)
def test_an_option_that_asks_for_something_else_is_refused(target: str, options, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_text_stage(target, Options(options, "project.yaml"))
    assert str(error.value).startswith(f"project.yaml: {message}")


@pytest.mark.parametrize(
    ("index", "changes", "params", "message"),
    [
        (0, {"input_key": "text"}, {}, "x: emb_models with input_key=['text', 'txt', 'original_size_as_tuple', "),
        (0, {"target": "a.FrozenT5Embedder"}, {}, "x: emb_models[0]: target='FrozenT5Embedder' is not supported; "),
        (0, {"new": 1}, {}, "x: emb_models[0]: new=1 is not supported; no such option of this model is known"),
        (1, {"target": "a.FrozenOpenCLIPEmbedder"}, {}, "x: emb_models[1]: target='FrozenOpenCLIPEmbedder' is not sup"),
        (1, {}, {"legacy": True}, "x: emb_models[1]: legacy=True is not supported; use False"),
        (1, {}, {"always_return_pooled": False}, "x: emb_models[1]: always_return_pooled=False is not supported; use"),
        (1, {"is_trainable": True}, {}, "x: is_trainable=[False, True] is not supported; both text encoders are"),
        (2, {"target": "a.Other"}, {}, "x: emb_models[2]: target='Other' is not supported; SDXL's sizes are embedded"),
        (3, {}, {"outdim": 128}, "x: outdim=[128, 256] is not supported; the three sizes are embedded alike"),
        (4, {}, {"new": 1}, "x: emb_models[4]: new=1 is not supported; no such option of this model is known"),
    ],
)
def test_another_conditioner_than_sdxl_s_is_refused(index: int, changes, params, message: str) -> None:
    entries = sdxl_entries()
    entries[index] |= {"params": {**entries[index]["params"], **params}, **changes}
    with pytest.raises(UserError) as error:
        read_text_stage("GeneralConditioner", Options({"emb_models": entries}, "x"))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            TextStage("bert", dataclasses.replace(BERT, num_heads=4)),
            r"BERTEmbedder cannot be told to be like this text encoder:\n  num_heads: 4 -> 8",
        ),
        (TextStage("bert", dataclasses.replace(BERT, mlp_dim=7)), "mlp_dim: 7 -> 5120"),
        (TextStage("bert", dataclasses.replace(BERT, dropout=0.1)), "dropout: 0.1 -> 0.0"),
        (TextStage("clip", ClipTextConditioning(activation="gelu")), "activation: 'gelu' -> 'quick_gelu'"),
        (TextStage("clip", ClipTextConditioning(projection_dim=768)), "projection_dim: 768 -> None"),
        (
            TextStage("clip", ClipTextConditioning(num_layers=11)),
            "no architecture is called by name that has context_dim=768, num_layers=11 and num_heads=12; known: openai",
        ),
        (TextStage("open_clip", dataclasses.replace(SD2, context_norm=False)), "context_norm: False -> True"),
        (TextStage("open_clip", dataclasses.replace(SD2, num_layers=23)), "no architecture is called by name"),
        (TextStage("open_clip", BERT), "a TextConditioning cannot be written as a text encoder of kind open_clip"),
    ],
)
def test_what_the_original_cannot_express_is_not_written(stage: TextStage, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_text_stage(stage)


OWN = dataclasses.replace(CLIP, mlp_dim=32)


@pytest.mark.parametrize(
    "config",
    [
        OWN,
        dataclasses.replace(OWN, activation="gelu", context_layer="penultimate", context_norm=False),
        SdxlConditioning(first=dataclasses.replace(OWN, context_norm=False)),
    ],
)
def test_a_clip_without_a_published_name_is_a_folder(config: ClipTextConditioning | SdxlConditioning) -> None:
    stage = text_stage_of(config)
    model = model_to_write(stage)
    target, params = write_text_stage(stage, "mine")
    found = read_text_stage(target, Options(params, "again.yaml"), {"mine": model}.get)
    assert without_rule(found.config) == without_rule(config)
    with pytest.raises(
        UserError, match=r"version='mine' is not supported; use 'openai/.*, or a folder with the config.j"
    ):
        read_text_stage(target, Options(params, "again.yaml"))


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_needs_no_folder(name: str) -> None:
    assert model_to_write(ZOO[name][2]) is None
    assert write_text_stage(ZOO[name][2], "mine") == write_text_stage(ZOO[name][2])


def test_a_clip_in_a_folder_has_prompts_of_its_own_length() -> None:
    options = Options({"version": "mine"}, "project.yaml")
    with pytest.raises(UserError, match=r"^project.yaml: max_length=77 is not supported; only 6 can be imported$"):
        read_text_stage("FrozenCLIPEmbedder", options, {"mine": model_to_write(TextStage("clip", OWN))}.get)
