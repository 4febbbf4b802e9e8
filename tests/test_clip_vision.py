"""CLIP's vision transformer: golden outputs, and what of a picture reaches its embedding."""

import dataclasses
import json

import numpy as np
import pytest
from foreign_tensors import Tensors, assert_close
from golden_weights import GOLDEN, golden_arrays
from module_trials import apply, compiled, num_params, param_shapes, random_array, random_params, replaced
from safetensors.numpy import load_file

from ldm_jax.conditioning.clip_vision import ClipVisionTransformer
from ldm_jax.config import ClipVisionConfig
from ldm_jax.interop.transformers.vision import read_clip_vision, read_clip_vision_config

CONFIG = ClipVisionConfig(
    image_size=7, image_channels=2, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_dim=12, projection_dim=5
)
IMAGE = random_array(2, 7, 7, 2)


@pytest.fixture(scope="module")
def trial():
    module = ClipVisionTransformer(CONFIG)
    params = random_params(module, IMAGE)
    return params, compiled(lambda params, image: module.apply({"params": params}, image))


def test_golden_outputs() -> None:
    folder, arrays = GOLDEN / "clip_vision", golden_arrays("clip_vision")
    config = read_clip_vision_config(json.loads((folder / "config.json").read_text()), "config.json")
    params = read_clip_vision(Tensors(load_file(folder / "model.safetensors")), config, "model.safetensors")
    outputs = apply(ClipVisionTransformer(config), params, arrays["pixel_values"])
    assert_close(outputs.hidden[-1], arrays["last_hidden_state"])
    assert_close(outputs.hidden[-2], arrays["penultimate"])
    assert_close(outputs.unprojected, arrays["pooler_output"])
    assert_close(outputs.pooled, arrays["image_embeds"])


def test_every_patch_reaches_the_embedding_and_what_is_left_at_the_edges_does_not(trial) -> None:
    params, encode = trial
    before = encode(params, IMAGE).pooled
    for row, column in ((0, 0), (1, 5), (5, 1), (5, 5)):
        after = encode(params, replaced(IMAGE, (0, row, column), 9.0)).pooled
        assert np.abs(after[0] - before[0]).max() > 1e-3
        np.testing.assert_array_equal(after[1], before[1])
    for index in (np.s_[0, 6], np.s_[0, :, 6]):
        np.testing.assert_array_equal(encode(params, replaced(IMAGE, index, 9.0)).pooled, before)


def test_places_matter_through_the_position_embedding_alone(trial) -> None:
    params, encode = trial
    swapped = IMAGE.copy()
    swapped[:, :3, :3], swapped[:, 3:6, 3:6] = IMAGE[:, 3:6, 3:6], IMAGE[:, :3, :3]
    assert np.abs(encode(params, swapped).pooled - encode(params, IMAGE).pooled).max() > 1e-3
    blind = {**params, "position": np.zeros_like(params["position"])}
    np.testing.assert_allclose(encode(blind, swapped).pooled, encode(blind, IMAGE).pooled, atol=1e-5)


def test_the_parameter_tree() -> None:
    shapes = param_shapes(ClipVisionTransformer(CONFIG), IMAGE)
    assert shapes["patch/kernel"] == (3, 3, 2, 8) and "patch/bias" not in shapes
    assert shapes["position"] == (5, 8) and shapes["class_token"] == (8,)
    assert shapes["projection/kernel"] == (8, 5)
    without = param_shapes(ClipVisionTransformer(dataclasses.replace(CONFIG, projection_dim=None)), IMAGE)
    assert set(shapes) - set(without) == {"projection/kernel"}


def test_vit_l_14_has_the_published_number_of_parameters() -> None:
    image = np.zeros((1, 224, 224, 3), np.float32)
    assert num_params(ClipVisionTransformer(ClipVisionConfig()), image) == 303_966_208
