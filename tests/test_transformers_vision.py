"""CLIP's vision transformer of transformers: both ways, every refusal, and its outputs against PyTorch."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from foreign_tensors import Tensors, assert_close, assert_same_tensors, random_tensors
from golden_weights import GOLDEN
from module_trials import apply
from safetensors.numpy import load_file, save_file

from ldm_jax.conditioning.clip_vision import ClipImage, ClipVisionTransformer
from ldm_jax.config import ClipVisionConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.transformers.vision import (
    abstract_clip_vision,
    clip_vision_slot,
    read_clip_vision,
    read_clip_vision_config,
    write_clip_vision,
    write_clip_vision_config,
)

CONFIG = ClipVisionConfig(
    image_size=7, image_channels=2, patch_size=3, width=8, num_layers=2, num_heads=2, mlp_dim=12, projection_dim=5
)
PLAIN = dataclasses.replace(CONFIG, projection_dim=None)


@pytest.mark.parametrize("config", [CONFIG, PLAIN])
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_weights_of_both_spellings_come_out_as_they_went_in(config, prefix: str) -> None:
    tensors = random_tensors(abstract_clip_vision(config), clip_vision_slot(prefix))
    usual = random_tensors(abstract_clip_vision(config), clip_vision_slot())
    tensors[f"{prefix}embeddings.position_ids"] = np.arange(5)[None]
    assert_same_tensors(write_clip_vision(read_clip_vision(tensors, config, "file")), usual)


def test_golden_weights_come_out_as_they_went_in() -> None:
    weights = load_file(GOLDEN / "clip_vision/model.safetensors")
    config = read_clip_vision_config(json.loads((GOLDEN / "clip_vision/config.json").read_text()), "config.json")
    assert_same_tensors(write_clip_vision(read_clip_vision(Tensors(weights), config, "file")), weights)


def test_the_vision_half_of_a_whole_clip_model_is_read() -> None:
    tensors = random_tensors(abstract_clip_vision(CONFIG), clip_vision_slot())
    rest = ("logit_scale", "text_projection.weight", "text_model.final_layer_norm.bias")
    whole = Tensors({**tensors, **{name: np.zeros(1) for name in rest}})
    assert_same_tensors(write_clip_vision(read_clip_vision(whole, CONFIG, "file")), tensors)
    with pytest.raises(UserError, match=r"unexpected: head\.weight"):
        read_clip_vision(Tensors({**tensors, "head.weight": np.zeros(1)}), CONFIG, "file")


@pytest.mark.parametrize("config", [CONFIG, PLAIN, dataclasses.replace(CONFIG, activation="gelu")])
def test_a_configuration_comes_back(config) -> None:
    assert read_clip_vision_config(write_clip_vision_config(config), "config.json") == config


def test_the_vision_half_of_a_configuration() -> None:
    nested = {name: value for name, value in write_clip_vision_config(CONFIG).items() if name != "architectures"}
    whole = {"architectures": ["CLIPModel"], "text_config": {}, "vision_config": nested, "projection_dim": 9}
    assert read_clip_vision_config(whole, "x") == dataclasses.replace(CONFIG, projection_dim=9)


def test_defaults_are_those_of_transformers() -> None:
    config = read_clip_vision_config({"architectures": ["CLIPVisionModelWithProjection"]}, "x")
    sizes = {"width": 768, "mlp_dim": 3072, "num_layers": 12, "num_heads": 12, "projection_dim": 512}
    assert config == ClipVisionConfig(image_size=224, image_channels=3, patch_size=32, **sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["CLIPTextModel"]}, "architectures=['CLIPTextModel'] is not supported; use one of CLIPVisi"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new' is not supported; use 'quick_gelu' or 'gelu'"),
        ({"attention_dropout": 0.5}, "attention_dropout=0.5 is not supported; only 0.0 can be imported"),
        ({"image_size": [7, 7]}, "image_size=[7, 7] is not supported; it has to be a whole number"),
        ({"qkv_bias": False}, "qkv_bias=False is not supported; no such option of this model is known"),
        ({"patch_size": 8}, "ClipVisionConfig.patch_size=8 is larger than image_size=7; use at most 7"),
    ],
)
def test_an_option_that_asks_for_something_else_is_refused(changes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_clip_vision_config({**write_clip_vision_config(CONFIG), **changes}, "config.json")
    assert str(error.value).startswith(f"config.json: {message}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_outputs_are_those_of_transformers_both_ways(name: str, seed: int, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    numbers = np.random.default_rng(seed)
    heads = int(numbers.integers(1, 4))
    options = {
        "hidden_size": heads * int(numbers.integers(2, 9)),
        "intermediate_size": int(numbers.integers(3, 40)),
        "projection_dim": int(numbers.integers(2, 20)),
        "num_hidden_layers": int(numbers.integers(1, 4)),
        "num_attention_heads": heads,
        "num_channels": int(numbers.integers(1, 5)),
        "image_size": int(numbers.integers(6, 20)),
        "patch_size": int(numbers.integers(2, 7)),
        "hidden_act": str(numbers.choice(["quick_gelu", "gelu"])),
        "layer_norm_eps": float(numbers.choice([1e-5, 1e-6, 1e-3])),
    }
    torch.manual_seed(seed)
    model = getattr(transformers, name)(transformers.CLIPVisionConfig(**options)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    image = numbers.normal(size=(2, options["image_size"], options["image_size"], options["num_channels"]))
    image = image.astype(np.float32)

    config = read_clip_vision_config(json.loads((tmp_path / "theirs/config.json").read_text()), "config.json")
    params = read_clip_vision(Tensors(load_file(tmp_path / "theirs/model.safetensors")), config, "model.safetensors")
    ours = apply(ClipVisionTransformer(config), params, image)
    _assert_same_outputs(torch, model, image, ours)

    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/config.json").write_text(json.dumps(write_clip_vision_config(config)))
    save_file(dict(write_clip_vision(params)), tmp_path / "ours/model.safetensors", {"format": "pt"})
    again, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _assert_same_outputs(torch, again.eval(), image, ours)


def _assert_same_outputs(torch: Any, model: Any, image: np.ndarray, ours: ClipImage) -> None:
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        theirs = getattr(model, "vision_model", model)(pixels, output_hidden_states=True)
        if hasattr(model, "visual_projection"):
            assert_close(ours.pooled, model(pixels).image_embeds)
    assert_close(ours.unprojected, theirs.pooler_output)
    assert_close(ours.hidden[-1], theirs.last_hidden_state)
    for mine, other in zip(ours.hidden, theirs.hidden_states, strict=True):
        assert_close(mine, other)
