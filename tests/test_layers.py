"""Layer by layer beside PyTorch: whose layer is whose, which is the first to differ, and what is said."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ldm_jax.config import AutoencoderVQConfig, ClipTextConditioning, UNetConfig
from ldm_jax.errors import UserError
from ldm_jax.interop import layers, torch_process
from ldm_jax.interop.diffusers.autoencoder import DiffusersAutoencoder, abstract_autoencoder_params, autoencoder_slot
from ldm_jax.interop.diffusers.unet import abstract_unet_params, unet_slot
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.layer_components import BATCH, read_component, unet_inputs
from ldm_jax.interop.layer_names import Modules, module_pairs
from ldm_jax.interop.layer_trace import trace
from ldm_jax.interop.layers import Section, as_report, as_report_json, components_of, rows_of, run_layers
from ldm_jax.interop.mapping import KERNEL, Slot, SlotOf, write_tensors
from ldm_jax.interop.torch_process import require_parity_extra, run_torch
from ldm_jax.interop.transformers.text import abstract_clip_text, clip_text_slot
from ldm_jax.model import Params
from tests.golden_weights import GOLDEN

TEXT = ClipTextConditioning(
    vocab_size=9, context_length=4, context_dim=4, num_layers=2, num_heads=2, begin_token=7, end_token=8, pad_token=8
)
UNET = DiffusersUNet(
    config=UNetConfig(
        base_channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(0,),
        num_heads=2,
        num_head_channels=None,
        num_groups=4,
        vector_dim=20,
    ),
    in_channels=4,
    out_channels=4,
    context_dim=6,
    vector="text_time",
    size_dim=3,
)
AUTOENCODER = DiffusersAutoencoder(
    config=AutoencoderVQConfig(
        base_channels=8, channel_mult=(1, 2), num_res_blocks=1, latent_channels=2, codebook_size=8, num_groups=4
    )
)

# names


LISTS = ("down_blocks", "up_blocks", "attentions", "resnets", "transformer_blocks", "net", "to_out", "layers")
"""Modules of PyTorch that only hold others, and put nothing out."""


def modules_of(params: Params, slot_of: SlotOf) -> Modules:
    paths = list(flatten_dict(params, sep="/"))
    theirs = [module for path in paths for module in modules_around(slot_of(path).name, ".")]
    ours = {module for path in paths for module in modules_around(path, "/")}
    called = {module for module in theirs if not module.endswith((*LISTS, "samplers"))}
    return module_pairs(paths, slot_of, called, ours)


def modules_around(name: str, joint: str) -> list[str]:
    parts = name.split(joint)
    return [joint.join(parts[:depth]) for depth in range(1, len(parts))]


def test_layers_and_blocks_of_a_unet_have_the_names_of_diffusers():
    modules = modules_of(abstract_unet_params(UNET), unet_slot(UNET))
    transformer = "down_blocks.0.attentions.0.transformer_blocks.0"
    layers_wanted = {
        "conv_in": "conv_in",
        "time_embedding.linear_1": "time/dense_0",
        "add_embedding.linear_2": "vector/dense_1",
        "down_blocks.0.resnets.0.time_emb_proj": "down_0/block_0/resnet/embedding",
        "down_blocks.0.downsamplers.0.conv": "down_0/resample/downsample/conv",
        f"{transformer}.attn1.to_out.0": "down_0/block_0/attention/block_0/self_attention/out",
        f"{transformer}.ff.net.0.proj": "down_0/block_0/attention/block_0/feed_forward/dense_0",
        "up_blocks.1.resnets.1.conv_shortcut": "up_0/block_1/resnet/skip",
    }
    groups_wanted = {
        "time_embedding": "time",
        "add_embedding": "vector",
        "down_blocks.0.resnets.0": "down_0/block_0/resnet",
        "down_blocks.1.resnets.0": "down_1/block_0/resnet",  # and not the level, which has one block
        "down_blocks.0.attentions.0": "down_0/block_0/attention",
        transformer: "down_0/block_0/attention/block_0",
        f"{transformer}.attn2": "down_0/block_0/attention/block_0/cross_attention",
        f"{transformer}.ff": "down_0/block_0/attention/block_0/feed_forward",
        "down_blocks.0.downsamplers.0": "down_0/resample/downsample",
        "up_blocks.0.upsamplers.0": "up_1/resample/upsample",
        "mid_block": "mid",
    }
    assert layers_wanted.items() <= modules.layers.items()
    assert groups_wanted.items() <= modules.groups.items()


def test_layers_and_blocks_of_an_autoencoder_have_the_names_of_diffusers():
    modules = modules_of(abstract_autoencoder_params(AUTOENCODER), autoencoder_slot(AUTOENCODER))
    wanted = {
        "encoder": "encoder",
        "encoder.mid_block.attentions.0": "encoder/mid/block_0/attention",
        "encoder.down_blocks.0.downsamplers.0": "encoder/downsample_0",
        "decoder.up_blocks.1": "decoder/up_0",
    }
    assert wanted.items() <= modules.groups.items()
    assert modules.layers["quantize.embedding"] == "codebook"
    assert "decoder.up_blocks.0" not in modules.groups, "theirs ends with the upsampler, ours does not hold it"


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_layers_of_a_text_transformer_have_the_names_of_transformers(prefix: str):
    modules = modules_of(abstract_clip_text(TEXT), clip_text_slot(prefix))
    assert modules.layers[f"{prefix}encoder.layers.1.self_attn.q_proj"] == "layer_1/attention/query"
    assert modules.groups[f"{prefix}encoder.layers.1.mlp"] == "layer_1/feed_forward"
    assert modules.groups[f"{prefix}encoder.layers.0"] == "layer_0"
    assert f"{prefix}embeddings.position_embedding" not in modules.layers, "ours is a parameter of the whole"


@pytest.mark.parametrize("kind", ["unet", "autoencoder", "text"])
def test_each_module_is_paired_once_and_none_with_parameters_is_left_out(kind: str):
    params, slot_of = {
        "unet": lambda: (abstract_unet_params(UNET), unet_slot(UNET)),
        "autoencoder": lambda: (abstract_autoencoder_params(AUTOENCODER), autoencoder_slot(AUTOENCODER)),
        "text": lambda: (abstract_clip_text(TEXT), clip_text_slot()),
    }[kind]()
    modules = modules_of(params, slot_of)
    ours = [*modules.layers.values(), *modules.groups.values()]
    assert len(set(ours)) == len(ours)
    owners = {path.rpartition("/")[0] for path in flatten_dict(params, sep="/")} - {""}
    assert set(modules.layers.values()) == owners


def test_plain_attention_without_a_norm_is_the_block_that_adds_to_its_input():
    paths = [f"mid/block_0/attention/attention/{part}/kernel" for part in ("query", "key")]
    names = dict(zip(paths, ("mid_block.attentions.0.to_q.weight", "mid_block.attentions.0.to_k.weight"), strict=True))
    theirs, ours = {"mid_block.attentions.0"}, {"mid/block_0/attention", "mid/block_0/attention/attention"}
    modules = module_pairs(paths, lambda path: Slot(names[path], KERNEL), theirs, ours)
    assert modules.groups == {"mid_block.attentions.0": "mid/block_0/attention"}


# inputs


def test_a_unet_is_given_every_condition_it_takes():
    inputs = unet_inputs(UNET, side=6)
    assert {name: x.shape[1:] for name, x in inputs.items()} == {
        "sample": (4, 6, 6),
        "timestep": (),
        "encoder_hidden_states": (7, 6),
        "text_embeds": (20 - 6 * 3,),
        "time_ids": (6,),
    }
    assert all(len(x) == BATCH for x in inputs.values())
    assert inputs["timestep"][0] != inputs["timestep"][1]


@pytest.mark.parametrize(
    ("size", "nearest"), [(3, "2 and 4"), (0, "2 and 4"), (-4, "2 and 4"), (5, "4 and 6")], ids=str
)
def test_a_size_that_cannot_be_halved_is_refused(size: int, nearest: str):
    folder = GOLDEN / "unet_sd1"
    message = f"--size={size} is not a multiple of 2, by which {folder} reduces its input; nearest usable: {nearest}"
    with pytest.raises(UserError, match=f"^{message}$"):
        read_component(folder, "UNet2DConditionModel", size)


# rows


def test_a_row_is_relative_to_its_own_size_but_for_what_is_nearly_zero():
    pairs = {
        "large": (np.array([100.0, 101.0]), np.array([100.0, 100.0])),
        "small": (np.array([0.5]), np.array([0.4])),
        "rounding": (np.array([1e-6]), np.array([-1e-6])),
    }
    rows = rows_of(pairs, tolerance=0.1, share=1e-3)
    np.testing.assert_allclose([row.relative for row in rows], [0.01, 0.1 / 0.4, 2e-6 / 0.1])
    assert [row.passed for row in rows] == [True, False, True]


def test_rows_of_zeros_are_equal_to_zeros_alone():
    zero = np.zeros(2)
    assert [row.passed for row in rows_of({"a": (zero, zero), "b": (zero + 0.2, zero)}, 0.1, 1e-3)] == [True, False]


def test_what_is_not_there_differs():
    (row,) = rows_of({"a": (None, np.ones(2))}, tolerance=1e9, share=1e-3)
    assert not row.passed
    assert row.note == "not there on our side"


def test_the_report_names_the_first_row_beyond_the_tolerance():
    pairs = {name: (np.array([1.0 + error]), np.array([1.0])) for name, error in (("a", 0), ("b", 0.5), ("c", 0.7))}
    wrong = Section("unet", "float32", "forward", rows_of(pairs, 0.1, 0.0))
    right = Section("unet", "bfloat16", "gradient", rows_of(pairs, 0.9, 0.0))
    tables = as_report([wrong, right]).split("\n\n")
    assert tables[0].splitlines()[0] == "unet, float32, forward"
    assert tables[0].splitlines()[1].split()[:2] == ["layer", "max"]
    assert tables[0].splitlines()[-1] == "first layer beyond tolerance: b (relative 5.0e-01)"
    assert tables[1].splitlines()[1].split()[0] == "gradient"
    assert tables[1].splitlines()[-1] == "no layer differs"
    told = json.loads(as_report_json([wrong, right]))
    assert [section["first_beyond_tolerance"] for section in told["sections"]] == ["b", None]
    assert [row["name"] for row in told["sections"][0]["layers"]] == ["a", "b", "c"]
    assert told["passed"] is False
    assert json.loads(as_report_json([right]))["passed"] is True


# the whole, with what PyTorch would have recorded written by hand

CLIP = GOLDEN / "clip_text"
SPOILT = "encoder.layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """What a PyTorch of the same numbers records of the golden text transformer, one layer and gradient spoilt."""
    component = read_component(CLIP, "CLIPTextModel")
    shapes = {"last_hidden_state": (BATCH, 16, 32), "pooler_output": (BATCH, 32)}
    v = {name: np.random.default_rng(3).normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    ours, slot_of = trace(component, "float32", v), clip_text_slot("")
    assert ours.parameters is not None
    modules = modules_of(component.params, slot_of)
    named = {name: ours.layers[path] for name, path in {**modules.layers, **modules.groups}.items()}
    named = dict(sorted(named.items())) | {"embeddings": np.ones((BATCH, 16, 32))}  # theirs alone, made of others
    gradients = dict(write_tensors(ours.parameters, slot_of))
    named[SPOILT] = named[SPOILT] + 0.01
    gradients[f"{SPOILT}.weight"] = 1.1 * gradients[f"{SPOILT}.weight"]
    kinds: Mapping[str, Mapping[str, np.ndarray]] = {
        "layer": named,
        "output": ours.outputs,
        "cotangent": v,
        "parameter": gradients,
    }
    return {f"{kind}/{name}": x for kind, arrays in kinds.items() for name, x in arrays.items()}


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch, recorded: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What PyTorch's side was asked, which answers with `recorded`."""
    asked: list[dict[str, Any]] = []

    def run(folder: Path, torch_class: str, inputs: dict[str, np.ndarray], exchange: Path, **options: Any) -> None:
        asked.append({"folder": folder, "class": torch_class, "inputs": set(inputs), **options})
        kept = {name: x for name, x in recorded.items() if options["gradient"] or name.startswith(("layer", "output"))}
        given: Any = kept
        np.savez(exchange / f"{options['dtypes'][0]}.npz", **given)

    monkeypatch.setattr(layers, "require_parity_extra", lambda: None)
    monkeypatch.setattr(layers, "run_torch", run)
    return asked


def test_the_one_layer_that_differs_is_found_forward_and_in_the_gradient(fake_torch: list[dict[str, Any]]):
    sections = run_layers(CLIP, dtypes=["float32"])
    assert fake_torch == [
        {"folder": CLIP, "class": "CLIPTextModel", "inputs": {"input_ids"}, "dtypes": ["float32"], "gradient": True}
    ]
    assert [section.direction for section in sections] == ["forward", "gradient"]
    beyond = [[row.name for row in section.rows if not row.passed] for section in sections]
    assert beyond == [[SPOILT], [f"{SPOILT}.weight"]]
    forward, gradient = ({row.name for row in section.rows} for section in sections)
    assert {"encoder.layers.0", "final_layer_norm", "output last_hidden_state", "output pooler_output"} <= forward
    assert "embeddings" not in forward
    assert {"embeddings.position_embedding.weight", "encoder.layers.2.layer_norm1.bias"} <= gradient


def test_without_gradients_only_layers_are_compared_and_a_tolerance_is_for_all(fake_torch: list[dict[str, Any]]):
    (section,) = run_layers(CLIP, dtypes=["float32"], gradient=False, tolerance=1e9)
    assert section.direction == "forward"
    assert section.first is None
    assert {row.tolerance for row in section.rows} == {1e9}
    assert fake_torch[0]["gradient"] is False


def test_an_output_of_another_shape_is_named_instead_of_its_gradients(
    fake_torch: list[dict[str, Any]], recorded: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    for kind in ("output", "cotangent"):
        monkeypatch.setitem(recorded, f"{kind}/pooler_output", np.zeros((BATCH, 31), np.float32))
    (section,) = run_layers(CLIP, dtypes=["float32"])
    assert section.direction == "forward"
    (row,) = [row for row in section.rows if row.name == "output pooler_output"]
    assert not row.passed
    assert row.note == "shape [2, 32] instead of [2, 31]"


def test_bfloat16_is_computed_in_bfloat16():
    component = read_component(CLIP, "CLIPTextModel")
    half, whole = (trace(component, dtype).outputs["last_hidden_state"] for dtype in ("bfloat16", "float32"))
    assert half.dtype == np.float32
    assert 1e-4 < np.max(np.abs(half - whole)) / np.max(np.abs(whole)) < 0.1


# what is refused


def write(folder: Path, name: str, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))
    return folder


def test_of_a_pipeline_the_known_components_are_compared(tmp_path: Path):
    index = {
        "_class_name": "StableDiffusionPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
    }
    write(tmp_path, "model_index.json", index)
    assert components_of(tmp_path) == {tmp_path / "vae": "AutoencoderKL", tmp_path / "unet": "UNet2DConditionModel"}


def test_models_that_cannot_be_compared_are_refused(tmp_path: Path):
    known = (
        "known: UNet2DModel, UNet2DConditionModel, AutoencoderKL, VQModel, CLIPTextModel, CLIPTextModelWithProjection"
    )
    folder = write(tmp_path / "a", "config.json", {"_class_name": "PriorTransformer"})
    with pytest.raises(UserError, match=f"^{folder}: 'PriorTransformer' cannot be compared by layers; {known}$"):
        components_of(folder)
    folder = write(tmp_path / "b", "model_index.json", {"scheduler": ["diffusers", "PNDMScheduler"]})
    with pytest.raises(UserError, match=f"^{folder} has no component that can be compared by layers; {known}$"):
        components_of(folder)


def test_what_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    there = {"torch"}
    monkeypatch.setattr(torch_process.importlib.util, "find_spec", lambda name: name if name in there else None)
    with pytest.raises(UserError) as error:
        run_layers(CLIP)
    assert str(error.value) == (
        "--layers runs the PyTorch original, which needs diffusers, transformers: pip install -e '.[parity]'"
    )
    there |= {"diffusers", "transformers"}
    require_parity_extra()


@pytest.mark.parametrize(
    ("stderr", "said"), [("Traceback\nOSError: no such file\n", "OSError: no such file"), ("", "9")]
)
def test_what_pytorch_said_last_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stderr: str, said: str):
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, 9, "", stderr)

    monkeypatch.setattr(torch_process.subprocess, "run", run)
    with pytest.raises(UserError, match=f"^x: PyTorch's VQModel has failed: {said}$"):
        run_torch(Path("x"), "VQModel", {"sample": np.ones(2)}, tmp_path, dtypes=["bfloat16", "float32"], gradient=True)
    program = str(Path(torch_process.__file__).with_name("torch_layers.py"))
    assert asked == [[sys.executable, "-P", program, "x", str(tmp_path), "VQModel", "bfloat16,float32", "--gradient"]]
    assert np.load(tmp_path / "inputs.npz")["sample"].tolist() == [1, 1]
