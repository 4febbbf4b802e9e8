"""`UNet2DModel` of diffusers, a U-Net with plain attention: its options and our configuration, both ways.

`attention_head_dim` is the width of a head, None the whole width. `downsample_type` and `upsample_type` count at levels
with attention only; other levels have block types for it. With scale_shift the middle's attention has no normalisation
unless `attn_norm_num_groups` asks for it.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.config import UNetConfig
from ldm_jax.interop.diffusers.options import Options, level_blocks, number, read_options, require_written
from ldm_jax.interop.diffusers.unet_fields import (
    DEFAULTS,
    USABLE,
    DiffusersUNet,
    LevelBlocks,
    read_fields,
    read_levels,
    read_unet,
    write_fields,
    write_levels,
)

OPTIONS: Options = {
    **DEFAULTS,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "downsample_type": "conv",
    "upsample_type": "conv",
    "attn_norm_num_groups": None,
    "add_attention": True,
    "num_train_timesteps": None,
}
"""Every option and its default."""

_USABLE: Mapping[str, tuple] = {
    **USABLE,
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "add_attention": (True, False),
    "class_embed_type": (None, "timestep"),
}


def read_unet_2d(config: Options, where: str) -> DiffusersUNet:
    """What the config.json of a UNet2DModel describes.

    Raises:
        UserError: an option is unknown, or has a value that our U-Net cannot follow.
    """
    options = read_options(config, OPTIONS, _USABLE, where)
    width = options["attention_head_dim"]
    timestep = options["class_embed_type"] == "timestep"
    fields = {
        **read_fields(options, where),
        **read_levels(*_block_types(options, where)),
        **_read_middle(options),
        "attention": "self",
        "num_res_blocks": number(options, "layers_per_block", where),
        "num_heads": 1 if width is None else None,
        "num_head_channels": None if width is None else number(options, "attention_head_dim", where),
        "vector_dim": options["block_out_channels"][0] if timestep else None,
    }
    return read_unet(options, fields, where, vector="timestep" if timestep else None)


def _block_types(options: Options, where: str) -> tuple[tuple[LevelBlocks, ...], tuple[LevelBlocks, ...]]:
    down = {
        "DownBlock2D": LevelBlocks(False, False),
        "ResnetDownsampleBlock2D": LevelBlocks(False, True),
        "AttnDownBlock2D": LevelBlocks(True, options["downsample_type"] == "resnet"),
    }
    up = {
        "UpBlock2D": LevelBlocks(False, False),
        "ResnetUpsampleBlock2D": LevelBlocks(False, True),
        "AttnUpBlock2D": LevelBlocks(True, options["upsample_type"] == "resnet"),
    }
    return level_blocks(options, "down_block_types", down, where), level_blocks(options, "up_block_types", up, where)


def _read_middle(options: Options) -> dict[str, Any]:
    if options["mid_block_type"] is None:
        return {"mid_res_blocks": 0, "mid_attention": False}
    if not options["add_attention"]:
        return {"mid_attention": False}
    groups = options["attn_norm_num_groups"]
    if groups is None and options["resnet_time_scale_shift"] == "scale_shift":
        groups = 0
    return {"mid_attention_groups": None if groups == options["norm_num_groups"] else groups}


def write_unet_2d(unet: DiffusersUNet) -> dict[str, Any]:
    """The options for a U-Net with plain attention: the inverse of `read_unet_2d`.

    Raises:
        UserError: there is no option for what the configuration asks for; the field is named.
    """
    config = unet.config
    blocks = {config.res_blocks_at(level) for level in range(len(config.channel_mult))}
    require_written(len(blocks) == 1, config, "num_res_blocks", "UNet2DModel has one number for all levels")
    require_written(
        config.vector_dim is None or unet.vector == "timestep",
        config,
        "vector_dim",
        "UNet2DModel has no vector condition but the embedding of a second time",
    )
    return {
        **write_fields(unet),
        **_write_levels(config),
        **_write_middle(config),
        "layers_per_block": blocks.pop(),
        "attention_head_dim": _head_width(config),
        "class_embed_type": "timestep" if unet.vector == "timestep" else None,
    }


def _write_levels(config: UNetConfig) -> dict[str, Any]:
    options: dict[str, Any] = {}
    names = {"down": "Downsample", "up": "Upsample"}
    for direction, levels in zip(names, write_levels(config), strict=True):
        resampling = levels[:-1]  # the last level of either way keeps its resolution
        of_attention = {level.resample_with_res_blocks for level in resampling if level.attention} or {False}
        require_written(
            len(of_attention) == 1,
            config,
            "resample_with_res_blocks",
            "UNet2DModel has one choice for all levels with attention",
        )
        options[f"{direction}sample_type"] = "resnet" if of_attention.pop() else "conv"
        way = direction.capitalize()
        options[f"{direction}_block_types"] = tuple(
            f"Attn{way}Block2D"
            if level.attention
            else f"Resnet{names[direction]}Block2D"
            if level.resample_with_res_blocks
            else f"{way}Block2D"
            for level in levels
        )
    return options


def _write_middle(config: UNetConfig) -> dict[str, Any]:
    require_written(config.mid_res_blocks != 1, config, "mid_res_blocks", "UNet2DModel has 0 or 2")
    groups = config.num_groups if config.mid_attention_groups is None else config.mid_attention_groups
    require_written(
        groups != 0 or config.scale_shift_norm or not config.mid_attention,
        config,
        "mid_attention_groups",
        "UNet2DModel leaves the normalisation out with scale_shift_norm=True only",
    )
    by_default = 0 if config.scale_shift_norm else config.num_groups
    return {
        "mid_block_type": "UNetMidBlock2D" if config.mid_res_blocks else None,
        "add_attention": config.mid_attention,
        "attn_norm_num_groups": groups if groups and groups != by_default else None,
    }


def _head_width(config: UNetConfig) -> int | None:
    if config.num_head_channels is not None:
        return config.num_head_channels
    levels = range(len(config.channel_mult))
    used = [level for level in levels if config.attention_at(level, "down", 0) or config.attention_at(level, "up", 0)]
    used += [levels[-1]] if config.mid_attention else []
    if all(config.heads_at(level) == 1 for level in used):
        return None
    widths = {config.channels_at(level) // config.heads_at(level) for level in used}
    require_written(len(widths) == 1, config, "num_heads", f"UNet2DModel has one width of a head, not {sorted(widths)}")
    return widths.pop()
