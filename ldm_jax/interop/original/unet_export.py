"""A U-Net of ours as options of the original code's `openaimodel.UNetModel`: what `unet_options` reads.

Only what differs from the original's defaults is written, so that the oldest code that has the options can read them.
"""

from typing import Any

from ldm_jax.config import UNetConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.original.unet import NORM_EPSILON, NUM_GROUPS, OriginalUNet
from ldm_jax.interop.original.unet_options import Library
from ldm_jax.model import Params


def describe_unet(config: UNetConfig, params: Params) -> OriginalUNet:
    """A U-Net of ours with the widths that its parameters have."""
    return OriginalUNet(
        config=config,
        in_channels=params["conv_in"]["kernel"].shape[-2],
        out_channels=params["conv_out"]["kernel"].shape[-1],
        context_dim=_context_dim(params) if config.attention == "transformer" else None,
    )


def _context_dim(params: Params) -> int | None:
    """Width that the first cross-attention takes."""
    if "cross_attention" in params:
        return params["cross_attention"]["key"]["kernel"].shape[0]
    found = (_context_dim(value) for _, value in sorted(params.items()) if isinstance(value, dict))
    return next((width for width in found if width is not None), None)


def options_of_unet(unet: OriginalUNet, library: Library = "ldm") -> dict[str, Any]:
    """The options under `unet_config.params` (sgm: `network_config.params`) that describe a U-Net.

    Raises:
        UserError: the original code cannot express it; every setting that is in the way is named.
    """
    config, dims = unet.config, unet.config.spatial_dims
    _require_expressible(unet, library)
    options: dict[str, Any] = {
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "model_channels": config.base_channels,
        "channel_mult": list(config.channel_mult),
        "attention_resolutions": [2**level for level in reversed(sorted(config.attention_levels))],
        "num_res_blocks": _list(config.num_res_blocks),
        **_heads(config),
    }
    if library == "ldm":
        options["image_size"] = 32  # the code asks for it and does not use it
    optional = {
        "dropout": (config.dropout, 0.0),
        "dims": (dims, 2),
        "use_scale_shift_norm": (config.scale_shift_norm, False),
        "resblock_updown": (config.resample_with_res_blocks, False),
        "n_embed": (config.num_codebook_ids, None),
        "num_classes": (config.num_classes if config.vector_dim is None else "sequential", None),
        "adm_in_channels": (config.vector_dim, None),
        "num_attention_blocks": (_list(config.num_attention_blocks), None),
        "use_new_attention_order": (unet.attention_order == "new", False),
        **(_transformer_options(unet, library) if config.attention == "transformer" else {}),
    }
    return options | {name: value for name, (value, default) in optional.items() if value != default}


def _transformer_options(unet: OriginalUNet, library: Library) -> dict[str, tuple[Any, Any]]:
    config = unet.config
    crossing = [level in config.cross_attention_only_levels for level in range(len(config.channel_mult))]
    return {
        "use_spatial_transformer": (True, library == "sgm"),
        "context_dim": (unet.context_dim, None),
        "transformer_depth": (_list(config.transformer_depth), None),
        "transformer_depth_middle": (config.mid_transformer_depth, None),
        "disable_self_attentions": (crossing if any(crossing) else None, None),
        "disable_middle_self_attn": (config.mid_cross_attention_only, False),
        "disable_middle_transformer": (not config.mid_attention, False),
        "use_linear_in_transformer": (config.linear_projection, False),
    }


def _heads(config: UNetConfig) -> dict[str, int]:
    if config.num_head_channels is not None:
        return {"num_head_channels": config.num_head_channels}
    down, up = _heads_of_levels(config)
    if len(down) == 1 and len(up) <= 1:
        heads, upsample = next(iter(down)), next(iter(up), None)
        return {"num_heads": heads} | ({} if upsample in (None, heads) else {"num_heads_upsample": upsample})
    return {"num_head_channels": next(iter(_head_widths(config)))}


def _heads_of_levels(config: UNetConfig) -> tuple[set[int], set[int]]:
    lowest = len(config.channel_mult) - 1
    down = {config.heads_at(level) for level in (*config.attention_levels, lowest)}
    return down, {config.heads_at(level, "up") for level in config.attention_levels}


def _head_widths(config: UNetConfig) -> set[int]:
    lowest = len(config.channel_mult) - 1
    widths = {config.channels_at(level) // config.heads_at(level) for level in (*config.attention_levels, lowest)}
    return widths | {config.channels_at(level) // config.heads_at(level, "up") for level in config.attention_levels}


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_FIXED = (
    *("mid_res_blocks", "mid_attention_groups", "up_attention_levels", "symmetric_padding", "time_embedding_dim"),
    "center_input",
)
"""Fields that the original code has at our default alone."""


def _require_expressible(unet: OriginalUNet, library: Library) -> None:
    config = unet.config
    transformer = config.attention == "transformer"
    down, up = _heads_of_levels(config)
    one_count = len(down) == 1 and (len(up) <= 1 if not transformer else up <= down)
    checks = {
        "num_groups": config.num_groups == NUM_GROUPS,
        "norm_epsilon": config.norm_epsilon == NORM_EPSILON,
        "time_frequencies": config.time_frequencies == "half",
        "time_order": config.time_order == "cos_sin",
        "channel_mult": config.channel_mult[0] == 1 and all(isinstance(m, int) for m in config.channel_mult),
        "num_heads": config.num_head_channels is not None or one_count or len(_head_widths(config)) == 1,
        "num_classes": config.num_classes is None or config.vector_dim is None,
        "spatial_dims": not transformer or config.spatial_dims == 2,
        "attention": transformer or library == "ldm",
        "mid_attention": config.mid_attention or (transformer and library == "sgm"),
        "mid_transformer_depth": not transformer or config.mid_transformer_depth is None or library == "sgm",
        "transformer_depth": not transformer or isinstance(config.transformer_depth, int) or library == "sgm",
        "num_codebook_ids": config.num_codebook_ids is None or library == "ldm",
        "resample_with_res_blocks": isinstance(config.resample_with_res_blocks, bool),
        **{name: getattr(config, name) == getattr(UNetConfig(), name) for name in _FIXED},
    }
    faults = [f"{name}={getattr(config, name)!r}" for name, expressible in checks.items() if not expressible]
    if faults:
        raise UserError(f"the original code's U-Net ({library}) cannot express UNetConfig.{', '.join(faults)}")
