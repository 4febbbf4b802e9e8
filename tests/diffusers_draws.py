"""Random options of diffusers' models, from all that can be read, and the models themselves with random weights."""

from random import Random
from typing import Any

import numpy as np
import pytest


def each_or_one(random: Random, values: tuple, levels: int) -> Any:
    """One of the values, or one for each level."""
    each = tuple(random.choice(values) for _ in range(levels))
    return random.choice([each[0], each])


def draw_block_types(random: Random, down: tuple[str, ...], up: tuple[str, ...], levels: int) -> dict[str, tuple]:
    """Types for the way down, and for the way up the same mirrored or, at times, others."""
    kinds = [random.randrange(len(down)) for _ in range(levels)]
    rising = random.choice([kinds, kinds, [random.randrange(len(down)) for _ in kinds]])
    return {
        "down_block_types": tuple(down[kind] for kind in kinds),
        "up_block_types": tuple(up[kind] for kind in reversed(rising)),
    }


def _draw_both(random: Random, levels: int) -> dict[str, Any]:
    return {
        "block_out_channels": tuple(random.choice([8, 12, 16, 24]) for _ in range(levels)),
        "norm_num_groups": 4,
        "in_channels": random.choice([3, 4, 7]),
        "out_channels": random.choice([3, 4, 8]),
        "flip_sin_to_cos": random.choice([True, False]),
        "freq_shift": random.choice([0, 1]),
        "norm_eps": random.choice([1e-5, 1e-6]),
        "resnet_time_scale_shift": random.choice(["default", "scale_shift"]),
        "downsample_padding": random.choice([1, 1, 0]),
        "center_input_sample": random.choice([False, False, True]),
        "act_fn": random.choice(["silu", "swish"]),
        "dropout": random.choice([0.0, 0.1]),
        "time_embedding_dim": random.choice([None, None, 20]),
        "sample_size": random.choice([None, 16, (16, 24)]),
    }


def draw_unet_2d(random: Random) -> dict[str, Any]:
    """Options of a UNet2DModel."""
    levels = random.choice([1, 2, 2, 3])
    down = ("AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D")
    up = ("AttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D")
    classes = ({}, {}, {"num_class_embeds": 5}, {"class_embed_type": "timestep"})
    return {
        "_class_name": "UNet2DModel",
        **_draw_both(random, levels),
        **draw_block_types(random, down, up, levels),
        **random.choice(classes),
        "mid_block_type": random.choice(["UNetMidBlock2D"] * 4 + [None]),
        "layers_per_block": random.choice([1, 2]),
        "attention_head_dim": random.choice([None, 2, 4]),
        "add_attention": random.choice([True, True, True, False]),
        "attn_norm_num_groups": random.choice([None, None, 2, 4]),
        "downsample_type": random.choice(["conv", "resnet"]),
        "upsample_type": random.choice(["conv", "resnet"]),
    }


def draw_unet_2d_condition(random: Random) -> dict[str, Any]:
    """Options of a UNet2DConditionModel."""
    levels = random.choice([1, 2, 2, 3])
    down = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D")
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D")
    sizes = {"addition_time_embed_dim": 6, "projection_class_embeddings_input_dim": 41}
    conditions = (
        {},
        {"num_class_embeds": 5},
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 9},
        {"class_embed_type": "timestep"},
        {"addition_embed_type": "text_time", **sizes},
        {"addition_embed_type": "text_time", **sizes, "num_class_embeds": 5},
    )
    return {
        "_class_name": "UNet2DConditionModel",
        **_draw_both(random, levels),
        **draw_block_types(random, down, up, levels),
        **random.choice(conditions),
        "mid_block_type": random.choice(["UNetMidBlock2DCrossAttn"] * 3 + ["UNetMidBlock2D", None]),
        "layers_per_block": each_or_one(random, (1, 2, 3), levels),
        "attention_head_dim": each_or_one(random, (1, 2, 4), levels),
        "transformer_layers_per_block": each_or_one(random, (1, 1, 2), levels),
        "only_cross_attention": each_or_one(random, (True, False), levels),
        "use_linear_projection": random.choice([True, False]),
        "cross_attention_dim": random.choice([6, 10, (7,) * levels]),
        "upcast_attention": random.choice([True, False]),
        "mid_block_only_cross_attention": random.choice([None, True, False]),
    }


def _draw_autoencoder(random: Random, levels: int) -> dict[str, Any]:
    down, up = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
    return {
        **draw_block_types(random, down, up, levels),
        "block_out_channels": tuple(random.choice([8, 12, 16]) for _ in range(levels)),
        "in_channels": random.choice([1, 3, 4]),
        "out_channels": random.choice([1, 3]),
        "layers_per_block": random.choice([1, 2]),
        "act_fn": random.choice(["silu", "swish"]),
        "latent_channels": random.choice([2, 4]),
        "norm_num_groups": 4,
        "scaling_factor": random.choice([0.18215, 1.0, 0.13025]),
        "mid_block_add_attention": random.choice([True, True, False]),
    }


def draw_autoencoder_kl(random: Random) -> dict[str, Any]:
    """Options of an AutoencoderKL."""
    options = _draw_autoencoder(random, random.choice([1, 2, 3]))
    channels = range(options["latent_channels"])
    statistics = (
        {},
        {"shift_factor": 0.0609},
        {"latents_mean": tuple(0.1 * i for i in channels), "latents_std": tuple(1 + 0.1 * i for i in channels)},
    )
    return {
        "_class_name": "AutoencoderKL",
        **options,
        **random.choice(statistics),
        "use_quant_conv": random.choice([True, False]),
        "use_post_quant_conv": random.choice([True, False]),
        "force_upcast": random.choice([True, False]),
    }


def draw_vq_model(random: Random) -> dict[str, Any]:
    """Options of a VQModel."""
    return {
        "_class_name": "VQModel",
        **_draw_autoencoder(random, random.choice([1, 2, 3])),
        "num_vq_embeddings": random.choice([7, 32]),
        "vq_embed_dim": random.choice([None, 3]),
        "lookup_from_codebook": random.choice([True, False]),
    }


def torch_model(options: dict[str, Any], seed: int = 0) -> Any:
    """The model of diffusers with random weights, also where the initial ones are zero or one."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    model = getattr(diffusers, options["_class_name"]).from_config(options).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scaled = 1 + 0.3 * values if parameter.ndim == 1 else values / np.sqrt(np.prod(parameter.shape[1:]))
        parameter.data.copy_(scaled)
    return model


def torch_tensors(model: Any) -> dict[str, np.ndarray]:
    """The weights of a model by name."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def torch_call(function: Any, *arguments: np.ndarray, **options: Any) -> Any:
    """Call a model or a method of one; numpy arrays go in as tensors, pictures from NHWC to NCHW."""
    torch = pytest.importorskip("torch")

    def tensor(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: tensor(value) for name, value in x.items()}
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if x.ndim == 4 else x))

    with torch.no_grad():
        return function(*(tensor(x) for x in arguments), **{name: tensor(x) for name, x in options.items()})


def picture(tensor: Any) -> np.ndarray:
    """A tensor NCHW as an array NHWC."""
    return np.moveaxis(tensor.numpy(), 1, -1)
