"""`UNet2DConditionModel` of diffusers, the U-Net of Stable Diffusion: its options and our configuration, both ways.

`attention_head_dim` is the number of heads, whatever its name says. The middle sees the context with the last level's
heads and depth; a middle called `UNetMidBlock2D` is one residual block and no more. `only_cross_attention` does not
reach the middle.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ldm_jax.config import UNetConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.options import (
    Options,
    level_blocks,
    number,
    one_or_each,
    per_level,
    read_options,
    require_written,
)
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
from ldm_jax.interop.foreign_options import refusal

OPTIONS: Options = {
    **DEFAULTS,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
    "only_cross_attention": False,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "upcast_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}
"""Every option and its default."""

_USABLE: Mapping[str, tuple] = {
    **USABLE,
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "use_linear_projection": (True, False),
    "class_embed_type": (None, "timestep", "projection"),
    "addition_embed_type": (None, "text_time"),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
}
_DOWN = {
    "DownBlock2D": LevelBlocks(False, False),
    "ResnetDownsampleBlock2D": LevelBlocks(False, True),
    "CrossAttnDownBlock2D": LevelBlocks(True, False),
}
_UP = {
    "UpBlock2D": LevelBlocks(False, False),
    "ResnetUpsampleBlock2D": LevelBlocks(False, True),
    "CrossAttnUpBlock2D": LevelBlocks(True, False),
}
_MIDDLES = {"UNetMidBlock2DCrossAttn": (2, True), "UNetMidBlock2D": (1, False), None: (0, False)}


def read_unet_2d_condition(config: Options, where: str) -> DiffusersUNet:
    """What the config.json of a UNet2DConditionModel describes.

    Raises:
        UserError: an option is unknown, or has a value that our U-Net cannot follow.
    """
    options = read_options(config, OPTIONS, _USABLE, where)
    down, up = (
        level_blocks(options, "down_block_types", _DOWN, where),
        level_blocks(options, "up_block_types", _UP, where),
    )
    mid_res_blocks, mid_attention = _MIDDLES[options["mid_block_type"]]
    vector, vector_dim = _read_vector(options, where)
    levels = len(down)
    only_context = per_level(options, "only_cross_attention", levels, where, bool)
    fields = {
        **read_fields(options, where),
        **read_levels(down, up),
        "attention": "transformer",
        "num_res_blocks": one_or_each(per_level(options, "layers_per_block", levels, where)),
        "num_heads": one_or_each(per_level(options, "attention_head_dim", levels, where)),
        "num_head_channels": None,
        "mid_res_blocks": mid_res_blocks,
        "mid_attention": mid_attention,
        "transformer_depth": _read_depth(options, levels, where),
        "cross_attention_only_levels": tuple(level for level in range(levels) if only_context[level]),
        "linear_projection": options["use_linear_projection"],
        "vector_dim": vector_dim,
    }
    sees_context = mid_attention or any(blocks.attention for blocks in (*down, *up))
    context_dim = _read_context_dim(options, levels, where) if sees_context else None
    return read_unet(options, fields, where, vector=vector, context_dim=context_dim)


def _read_depth(options: Options, levels: int, where: str) -> int | tuple[int, ...]:
    depth = per_level(options, "transformer_layers_per_block", levels, where)
    rising = options["reverse_transformer_layers_per_block"]
    if rising is not None and rising != depth[::-1]:
        name = "reverse_transformer_layers_per_block"
        raise refusal(where, name, rising, f"usable: None, or the reverse of the way down, {depth[::-1]}")
    return one_or_each(depth)


def _read_context_dim(options: Options, levels: int, where: str) -> int:
    widths = per_level(options, "cross_attention_dim", levels, where)
    if len(set(widths)) != 1:
        raise refusal(where, "cross_attention_dim", widths, "usable: the same width at every level")
    return widths[0]


def _read_vector(
    options: Options, where: str
) -> tuple[Literal["projection", "timestep", "text_time"] | None, int | None]:
    """What the vector condition is, and its width."""
    of_class, added = options["class_embed_type"], options["addition_embed_type"]
    if of_class is not None and added is not None:
        raise refusal(where, "addition_embed_type", added, f"usable with class_embed_type={of_class!r}: None")
    if of_class == "timestep":
        return "timestep", options["block_out_channels"][0]
    kind = added or of_class
    if kind is None:
        return None, None
    if kind == "text_time":
        number(options, "addition_time_embed_dim", where)
    return kind, number(options, "projection_class_embeddings_input_dim", where)


def write_unet_2d_condition(unet: DiffusersUNet) -> dict[str, Any]:
    """The options for a U-Net with spatial transformers: the inverse of `read_unet_2d_condition`.

    Raises:
        UserError: there is no option for what the configuration asks for; the field is named.
    """
    config = unet.config
    levels = range(len(config.channel_mult))
    down, up = write_levels(config)
    middle = config.mid_res_blocks, config.mid_attention
    require_written(
        middle in _MIDDLES.values(),
        config,
        "mid_res_blocks",
        "UNet2DConditionModel has a middle of 2 with attention, of 1 without, or none",
    )
    only_context = tuple(level in config.cross_attention_only_levels for level in levels)
    return {
        **write_fields(unet),
        **_write_vector(unet),
        "down_block_types": _block_types(config, _DOWN, down),
        "mid_block_type": next(name for name, what in _MIDDLES.items() if what == middle),
        "up_block_types": _block_types(config, _UP, up),
        "layers_per_block": config.num_res_blocks,
        "attention_head_dim": one_or_each(tuple(_num_heads(config, level) for level in levels)),
        "transformer_layers_per_block": config.transformer_depth,
        "only_cross_attention": one_or_each(only_context),
        "cross_attention_dim": _write_context_dim(unet, config.mid_attention or any(b.attention for b in (*down, *up))),
        "use_linear_projection": config.linear_projection,
    }


def _block_types(config: UNetConfig, names: Mapping[str, LevelBlocks], levels: list[LevelBlocks]) -> tuple[str, ...]:
    types = [next((name for name, what in names.items() if what == level), "") for level in levels]
    require_written(
        all(types),
        config,
        "resample_with_res_blocks",
        "UNet2DConditionModel has plain convolutions behind levels with attention",
    )
    return tuple(types)


def _num_heads(config: UNetConfig, level: int) -> int:
    """Heads of a level; one without attention may be too narrow for any, and diffusers asks for a number."""
    return max(config.heads_at(level), 1)


def _write_context_dim(unet: DiffusersUNet, sees_context: bool) -> int:
    if not sees_context:
        return OPTIONS["cross_attention_dim"]
    if unet.context_dim is None:
        raise UserError(
            "a U-Net with spatial transformers and no context cannot be written for diffusers: its second attention "
            "looks at a context, of width cross_attention_dim"
        )
    return unet.context_dim


def _write_vector(unet: DiffusersUNet) -> dict[str, Any]:
    kind, width = unet.vector, unet.config.vector_dim
    if kind is None:
        require_written(width is None, unet.config, "vector_dim", "say what the vector is, in DiffusersUNet.vector")
        return {}
    if kind == "text_time":
        return {
            "addition_embed_type": kind,
            "addition_time_embed_dim": unet.size_dim,
            "projection_class_embeddings_input_dim": width,
        }
    return {"class_embed_type": kind, "projection_class_embeddings_input_dim": None if kind == "timestep" else width}
