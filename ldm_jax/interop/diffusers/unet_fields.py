"""What the two U-Nets of diffusers have in common: the record of one, and the options that mean the same in both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ldm_jax.config import UNetConfig
from ldm_jax.interop.diffusers.options import ACTIVATIONS, Options, channel_mult, number, require_defaults
from ldm_jax.interop.foreign_options import build


@dataclass(frozen=True, kw_only=True)
class DiffusersUNet:
    """A U-Net as diffusers describes it: our configuration, and what is no part of that."""

    config: UNetConfig
    in_channels: int
    """Channels of the input, concatenated maps included; `config.concat_channels` is 0 when read."""
    out_channels: int
    """Channels of the prediction."""
    sample_size: int | tuple[int, ...] | None = None
    """Size of the latents that the model was trained at; nothing depends on it."""
    context_dim: int | None = None
    """Width of the context; None where there is no cross-attention."""
    vector: Literal["projection", "timestep", "text_time"] | None = None
    """What the vector condition is: `class_labels` as they are (projection), their sinusoidal embedding of width
    `config.base_channels` (timestep), or pooled text and behind it the embedded sizes (text_time). Sinusoidal
    embeddings have the order and the frequencies of the time's."""
    size_dim: int | None = None
    """Width of the embedding of each size (text_time)."""


class LevelBlocks(NamedTuple):
    """What a block type says of its level: is there attention, and is it a residual block that resamples behind it."""

    attention: bool
    resample_with_res_blocks: bool


DEFAULTS: Options = {
    "sample_size": None,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_scale_factor": 1,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "class_embed_type": None,
    "num_class_embeds": None,
}
"""Options of both classes that have the same default."""

USABLE: Mapping[str, tuple] = {
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "flip_sin_to_cos": (True, False),
    "center_input_sample": (True, False),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "act_fn": ACTIVATIONS,
    "resnet_time_scale_shift": ("default", "scale_shift"),
}
"""Values that our U-Net can follow, of the options that have few."""

_WRITTEN = {
    *("base_channels", "channel_mult", "num_res_blocks", "attention_levels", "up_attention_levels", "attention"),
    *("transformer_depth", "num_heads", "num_head_channels", "mid_res_blocks", "mid_attention", "mid_attention_groups"),
    *("cross_attention_only_levels", "num_classes", "vector_dim", "linear_projection", "scale_shift_norm"),
    *("resample_with_res_blocks", "symmetric_padding", "dropout", "num_groups", "norm_epsilon"),
    *("time_frequencies", "time_order", "time_embedding_dim", "center_input"),
    "concat_channels",  # among the input's channels
}


def read_fields(options: Options, where: str) -> dict[str, Any]:
    """The fields of UNetConfig whose options mean the same in both classes."""
    fields = channel_mult(options, where)
    width = options["time_embedding_dim"] or None
    return {
        **fields,
        "dropout": options["dropout"],
        "num_groups": number(options, "norm_num_groups", where),
        "norm_epsilon": options["norm_eps"],
        "scale_shift_norm": options["resnet_time_scale_shift"] == "scale_shift",
        "symmetric_padding": options["downsample_padding"] == 1,
        "time_frequencies": "half" if options["freq_shift"] == 0 else "half_minus_one",
        "time_order": "cos_sin" if options["flip_sin_to_cos"] else "sin_cos",
        "time_embedding_dim": None if width == 4 * fields["base_channels"] else width,
        "center_input": options["center_input_sample"],
        "num_classes": options["num_class_embeds"] if options["class_embed_type"] is None else None,
    }


def read_levels(down: tuple[LevelBlocks, ...], up: tuple[LevelBlocks, ...]) -> dict[str, Any]:
    """The fields of UNetConfig that say where attention is and how the resolution changes.

    Args:
        down: of each level on the way down.
        up: of each level on the way up, which begins at the lowest resolution.
    """
    rising = up[::-1]  # by level, as ours
    down_levels, up_levels = (
        tuple(level for level, blocks in enumerate(way) if blocks.attention) for way in (down, rising)
    )
    choices = tuple(blocks.resample_with_res_blocks for blocks in (*down[:-1], *rising[1:]))
    return {
        "attention_levels": down_levels,
        "up_attention_levels": None if up_levels == down_levels else up_levels,
        "resample_with_res_blocks": choices if len(set(choices)) == 2 else bool(choices and choices[0]),
    }


def read_unet(
    options: Options,
    fields: Options,
    where: str,
    *,
    vector: Literal["projection", "timestep", "text_time"] | None,
    context_dim: int | None = None,
) -> DiffusersUNet:
    """The record for options and the fields of UNetConfig read from them."""
    return DiffusersUNet(
        config=build(UNetConfig, fields, where),
        in_channels=number(options, "in_channels", where),
        out_channels=number(options, "out_channels", where),
        sample_size=options["sample_size"],
        context_dim=context_dim,
        vector=vector,
        size_dim=options["addition_time_embed_dim"] if vector == "text_time" else None,
    )


def write_fields(unet: DiffusersUNet) -> dict[str, Any]:
    """The options that mean the same in both classes.

    Raises:
        UserError: there is no option for what the configuration asks for.
    """
    config = unet.config
    require_defaults(config, _WRITTEN)
    return {
        "sample_size": unet.sample_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": tuple(config.channels_at(level) for level in range(len(config.channel_mult))),
        "dropout": config.dropout,
        "norm_num_groups": config.num_groups,
        "norm_eps": config.norm_epsilon,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "downsample_padding": 1 if config.symmetric_padding else 0,
        "freq_shift": 0 if config.time_frequencies == "half" else 1,
        "flip_sin_to_cos": config.time_order == "cos_sin",
        "time_embedding_dim": config.time_embedding_dim,
        "center_input_sample": config.center_input,
        "num_class_embeds": config.num_classes,
    }


def write_levels(config: UNetConfig) -> tuple[list[LevelBlocks], list[LevelBlocks]]:
    """The inverse of `read_levels`; a level without a change of resolution counts as a plain convolution."""
    lowest = len(config.channel_mult) - 1
    down = [
        LevelBlocks(
            config.attention_at(level, "down", 0), level < lowest and config.resamples_in_res_block("down", level)
        )
        for level in range(lowest + 1)
    ]
    up = [
        LevelBlocks(config.attention_at(level, "up", 0), level > 0 and config.resamples_in_res_block("up", level))
        for level in reversed(range(lowest + 1))
    ]
    return down, up
