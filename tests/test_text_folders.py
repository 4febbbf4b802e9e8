"""CLIP's text transformers from folders of transformers: where their tokenizers lie, and what does not fit."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from golden_weights import GOLDEN
from safetensors.numpy import load_file, save_file

from ldm_jax.config import ClipTextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.text_folders import read_text_folder

PIPELINE = GOLDEN / "pipeline_sd1"
CONFIG = ClipTextConditioning(
    vocab_size=527,
    context_length=16,
    context_dim=32,
    num_layers=2,
    num_heads=4,
    mlp_dim=64,
    begin_token=525,
    end_token=526,
    pad_token=526,
)


def read(folder: Path, **changes: Any) -> Any:
    return read_text_folder(folder, dataclasses.replace(CONFIG, **changes), "conditioning")


@pytest.fixture
def together(tmp_path: Path) -> Path:
    """Model and tokenizer in one folder, as transformers keeps them."""
    folder = tmp_path / "clip"
    shutil.copytree(PIPELINE / "text_encoder", folder)
    shutil.copytree(PIPELINE / "tokenizer", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json"))
    return folder


def test_the_tokenizer_lies_in_the_folder_or_beside_it(together: Path):
    one, other = read(together), read(PIPELINE / "text_encoder")
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert one[1].to_str() == other[1].to_str()
    assert one[1].encode("a red cat").ids[:2] == [525, one[1].token_to_id("a</w>")]


def test_the_context_is_up_to_the_configuration(together: Path):
    params, _ = read(together, context_layer="penultimate", context_norm=False, trainable=True)
    assert set(params) == {"token", "position", "layer_0", "layer_1", "norm_out"}


def test_a_projection_that_is_not_wanted_is_left_out(together: Path):
    options = json.loads((together / "config.json").read_text())
    options |= {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 8}
    (together / "config.json").write_text(json.dumps(options))
    weights = together / "model.safetensors"
    save_file({**load_file(weights), "text_projection.weight": np.ones((8, 32), np.float32)}, weights)
    assert "projection" not in read(together)[0]
    assert read(together, projection_dim=8)[0]["projection"]["kernel"].shape == (32, 8)


REFUSED = {
    "another size": ({"num_layers": 3}, "conditioning.num_layers: 2 -> 3"),
    "another width inside": ({"mlp_dim": None}, "conditioning.mlp_dim: 64 -> 128"),
    "other marks": ({"pad_token": 0}, "conditioning.pad_token: 526 -> 0"),
    "a projection that is not there": ({"projection_dim": 8}, "conditioning.projection_dim: None -> 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_text_transformer_is_refused_with_what_differs(together: Path, name: str):
    changes, line = REFUSED[name]
    message = f"conditioning.folder={together} is another text transformer:\n  {line}\nset these fields to it"
    with pytest.raises(UserError, match=re.escape(message)):
        read(together, **changes)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    shutil.copytree(PIPELINE / "text_encoder", tmp_path / "text_encoder_2")
    message = (
        f"there is no tokenizer in {tmp_path}/text_encoder_2 nor in {tmp_path}/tokenizer_2 (none of tokenizer_config"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path / "text_encoder_2")


def test_a_folder_without_weights_is_refused(together: Path):
    (together / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights in \S*clip: looked for model\.safetensors"):
        read(together)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"none/config\.json cannot be read \(No such file or directory\)"):
        read(tmp_path / "none")
