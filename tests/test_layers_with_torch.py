"""Every layer and gradient of the golden models is PyTorch's, in both types of numbers; what is damaged is found."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ldm_jax import cli
from ldm_jax.interop.layer_components import read_component
from ldm_jax.interop.layers import compare_component, run_layers
from ldm_jax.interop.torch_process import read_recording, run_torch
from tests.golden_weights import GOLDEN

pytestmark = pytest.mark.slow
torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")

SD1 = GOLDEN / "unet_sd1"


@pytest.mark.parametrize("case", ["unet_sd1", "autoencoder_kl", "autoencoder_vq", "clip_text"])
def test_no_layer_of_a_golden_model_differs(case: str):
    sections = run_layers(GOLDEN / case)
    assert [(section.dtype, section.direction) for section in sections] == [
        ("float32", "forward"),
        ("float32", "gradient"),
        ("bfloat16", "forward"),
        ("bfloat16", "gradient"),
    ]
    assert [section.first for section in sections] == [None] * 4
    assert all(len(section.rows) > 30 for section in sections)
    assert max(row.error for row in sections[2].rows) > 1e-4, "in bfloat16 the two do not round alike"


def write_text_with_projection(folder: Path) -> None:
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, projection_dim=8, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, hidden_act="gelu", bos_token_id=48, eos_token_id=49,
        pad_token_id=49,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)


def write_unet_xl(folder: Path) -> None:
    diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=34,
    ).save_pretrained(folder)  # fmt: skip


def write_unet_of_classes(folder: Path) -> None:
    diffusers.UNet2DModel(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, num_class_embeds=5, attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), resnet_time_scale_shift="scale_shift",
    ).save_pretrained(folder)  # fmt: skip


@pytest.mark.parametrize("write", [write_text_with_projection, write_unet_xl, write_unet_of_classes])
def test_no_layer_of_other_kinds_differs(write: Any, tmp_path: Path):
    torch.manual_seed(0)
    write(tmp_path)
    sections = run_layers(tmp_path)
    assert [section.first for section in sections] == [None] * 4


@pytest.mark.parametrize(
    "layer", ["down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v", "conv_out"]
)
def test_a_damaged_weight_is_found_where_it_is(layer: str, tmp_path: Path):
    folder = shutil.copytree(SD1, tmp_path / "damaged")
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    damage = np.zeros_like(tensors[f"{layer}.weight"])
    damage.flat[0] = 0.5
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] + damage
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    component = read_component(folder, "UNet2DConditionModel")
    run_torch(SD1, "UNet2DConditionModel", component.inputs, tmp_path, dtypes=["float32"], gradient=False)
    (forward,) = compare_component(component, read_recording(tmp_path, "float32"), "float32")
    assert forward.first is not None
    assert forward.first.name == layer


def test_the_command_tells_and_its_status_too(capsys: pytest.CaptureFixture[str]):
    flags = ["--layers", str(GOLDEN / "clip_text"), "--dtype", "float32", "--no-gradient"]
    assert cli.run(cli.parity, flags) == 0
    assert capsys.readouterr().out.endswith("\nno layer differs\n")
    assert cli.run(cli.parity, [*flags, "--tolerance", "1e-12"]) == 1
    assert "first layer beyond tolerance: " in capsys.readouterr().out
