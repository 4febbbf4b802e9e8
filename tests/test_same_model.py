"""Two configurations of one model are recognised, however they are written, and another model is told by its fields."""

import dataclasses
import json
from typing import Any

import pytest
from golden_weights import GOLDEN

from ldm_jax.config import (
    AutoencoderKLConfig,
    AutoencoderVQConfig,
    ClipTextConditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    TextConditioning,
    UNetConfig,
    load_experiment,
)
from ldm_jax.config.same_model import model_differences
from ldm_jax.interop.diffusers.unet import read_unet_config
from ldm_jax.interop.transformers.text import read_clip_text_config, sdxl_conditioning

UNET = json.loads((GOLDEN / "unet_sd1" / "config.json").read_text())
TEXT = json.loads((GOLDEN / "clip_text" / "config.json").read_text()) | {"bos_token_id": 0, "pad_token_id": 1}
PUBLISHED: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "sd1": (
        {"block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8, "cross_attention_dim": 768},
        [{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}],
    ),
    "sd2-base": (
        {
            "block_out_channels": [320, 640, 1280, 1280],
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        [{"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}],
    ),
    "sdxl": (
        {
            "block_out_channels": [320, 640, 1280],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, 2, 10],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        [
            {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
            {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "hidden_act": "gelu",
                "projection_dim": 1280,
                "architectures": ["CLIPTextModelWithProjection"],
            },
        ],
    ),
}
"""What the published models of diffusers say; in their text transformers the old end mark 2 means the largest token."""


def published(name: str) -> Experiment:
    """A published model as its files describe it; the marks are those of its tokenizers."""
    unet, texts = PUBLISHED[name]
    plain = [name == "sdxl", *[False] * (len(unet["block_out_channels"]) - 2), name != "sdxl"]
    blocks = {
        "down_block_types": [("DownBlock2D" if flat else "CrossAttnDownBlock2D") for flat in plain],
        "up_block_types": [("UpBlock2D" if flat else "CrossAttnUpBlock2D") for flat in plain[::-1]],
    }
    shared = {"layers_per_block": 2, "norm_num_groups": 32, "sample_size": 64}
    read = []
    for text in texts:
        size = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2}
        values = TEXT | size | {"intermediate_size": 4 * text["hidden_size"], "hidden_act": "quick_gelu"} | text
        pad = 49407 if text["hidden_size"] == 768 else 0
        read.append(dataclasses.replace(read_clip_text_config(values, "config.json"), pad_token=pad))
    denoiser = read_unet_config(UNET | blocks | shared | unet, "config.json")
    conditioning = sdxl_conditioning(*read, size_dim=256) if name == "sdxl" else read[0]
    mine = load_experiment(f"zoo/{name}")
    return dataclasses.replace(mine, conditioning=conditioning, denoiser=denoiser.config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_of_a_shipped_configuration_can_start_from_the_published_model(name: str):
    assert published(name) != load_experiment(f"zoo/{name}")
    assert model_differences(published(name), load_experiment(f"zoo/{name}")) == []


def base(**parts: Any) -> Experiment:
    autoencoder = parts.pop("autoencoder", AutoencoderKLConfig())
    data = DataConfig(image_size=64, image_channels=parts.pop("image_channels", 3))
    return Experiment(data=data, first_stage=FirstStageConfig(autoencoder=autoencoder), **parts)


SAME = {
    "what only training looks at": (
        {"autoencoder": AutoencoderKLConfig(kl_weight=1e-3, dropout=0.2), "denoiser": UNetConfig(dropout=0.1)},
        {},
    ),
    "weights of the codebook's loss": (
        {"autoencoder": AutoencoderVQConfig(commitment_cost=1.0, codebook_weight=2.0)},
        {"autoencoder": AutoencoderVQConfig()},
    ),
    "how codes learn": (
        {"autoencoder": AutoencoderVQConfig(codes="average", code_decay=0.9, restart_usage=0.1)},
        {"autoencoder": AutoencoderVQConfig()},
    ),
    "one number for all levels": (
        {"denoiser": UNetConfig(num_res_blocks=(2, 2, 2), transformer_depth=(9, 1, 1), mid_transformer_depth=1)},
        {},
    ),
    "heads and their width": ({"denoiser": UNetConfig(num_heads=(1, 8, 16), num_head_channels=None)}, {}),
    "depth where nothing is transformed": (
        {"denoiser": UNetConfig(attention="self", transformer_depth=4)},
        {"denoiser": UNetConfig(attention="self")},
    ),
    "defaults written out": (
        {"denoiser": UNetConfig(up_attention_levels=(1, 2), time_embedding_dim=512)},
        {},
    ),
    "defaults of text written out": (
        {"conditioning": TextConditioning(mlp_dim=512, num_head_channels=32, dropout=0.1)},
        {"conditioning": TextConditioning()},
    ),
    "whether it is trained": (
        {"conditioning": ClipTextConditioning(trainable=True, folder="somewhere", mlp_dim=3072)},
        {"conditioning": ClipTextConditioning()},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_model_written_otherwise(name: str):
    one, other = (base(**parts) for parts in SAME[name])
    assert one != other
    assert model_differences(one, other) == []


OTHER = {
    "heads": ({"denoiser": UNetConfig(num_head_channels=16)}, "denoiser.num_heads: (1, 16, 32) -> (1, 8, 16)"),
    "autoencoder": (
        {"autoencoder": AutoencoderKLConfig(num_res_blocks=1)},
        "first_stage.autoencoder.num_res_blocks: 1 -> 2",
    ),
    "channels": ({"image_channels": 1}, "data.image_channels: 1 -> 3"),
    "variance": ({"diffusion": DiffusionConfig(variance="learned")}, "diffusion.variance: 'learned' -> 'fixed'"),
    "depth of one level": (
        {"denoiser": UNetConfig(transformer_depth=(1, 2, 1))},
        "denoiser.transformer_depth: (1, 2, 1) -> (1, 1, 1)",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_model_is_told_by_its_fields(name: str):
    parts, line = OTHER[name]
    assert model_differences(base(**parts), base()) == [line]


def test_where_the_pooled_text_is_read_matters_where_the_end_mark_is_not_the_largest_token():
    largest, end = (base(conditioning=ClipTextConditioning(pooled_at=at, end_token=5)) for at in ("largest", "end"))
    assert model_differences(largest, end) == ["conditioning.pooled_at: 'largest' -> 'end'"]
