"""The options of the original code's U-Net (`openaimodel.UNetModel`), to our configuration and back.

`ldm` is the code of latent-diffusion and of Stable Diffusion 1 and 2, `sgm` that of Stable Diffusion XL, whose U-Net
has transformers only and counts heads without `legacy`.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ldm_jax.config import Place, UNetConfig
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.unet import NORM_EPSILON, NUM_GROUPS, OriginalUNet

Library = Literal["ldm", "sgm"]
_UNSET = -1  # of head counts
_OF_TRANSFORMERS = (
    *("transformer_depth", "transformer_depth_middle", "disable_self_attentions", "disable_middle_self_attn"),
    *("disable_middle_transformer", "use_linear_in_transformer", "spatial_transformer_attn_type"),
)
_IRRELEVANT = ("image_size", "use_checkpoint", "use_fp16", "use_bf16", "use_fairscale_checkpoint", "offload_to_cpu")


class _Heads(NamedTuple):
    """What the original code is told about heads, and how many it makes of it."""

    num_heads: int
    num_head_channels: int
    num_heads_upsample: int
    transformer: bool
    legacy: bool

    def at(self, channels: int, place: Place) -> int:
        """Heads of an attention over so many channels; 0 where they do not divide the channels (3), (4)."""
        if self.num_head_channels != _UNSET:
            heads = channels // self.num_head_channels
            width = channels // heads if heads and self.transformer and self.legacy else self.num_head_channels
        elif self.transformer or not self.legacy:
            width = channels // self.num_heads
            heads = self.num_heads if self.transformer or not width else channels // width
        else:
            heads = self.num_heads_upsample if place == "up" else self.num_heads
            width = channels // heads
        return heads if heads * width == channels else 0


def unet_from_options(options: Options, library: Library = "ldm") -> OriginalUNet:
    """The U-Net that the options under `unet_config.params` (sgm: `network_config.params`) describe.

    Raises:
        UserError: an option is not known, or has a value that is not supported.
    """
    options.ignore(*_IRRELEVANT)
    multiples = options.wholes("channel_mult", (1, 2, 4, 8))
    if multiples[:1] != (1,):
        raise options.refused("channel_mult", list(multiples), "the original runs only with 1 for the first level")
    transformer = options.flag("use_spatial_transformer", library == "sgm")
    values: dict[str, Any] = {"base_channels": options.whole("model_channels"), "channel_mult": multiples}
    values |= _plain_options(options, transformer) | _class_options(options) | _block_options(options, len(multiples))
    values |= _attention_options(options, len(multiples), transformer)
    values |= _head_options(options, values, transformer, options.flag("legacy", library == "ldm"))
    unet = OriginalUNet(
        config=UNetConfig(num_groups=NUM_GROUPS, norm_epsilon=NORM_EPSILON, **values),
        in_channels=options.whole("in_channels"),
        out_channels=options.whole("out_channels"),
        context_dim=_context_dim(options, transformer, library),
        attention_order="new" if options.flag("use_new_attention_order", False) else "legacy",
    )
    options.finish()
    return unet


def with_concatenation(unet: OriginalUNet, latent_channels: int, options: Options) -> OriginalUNet:
    """The U-Net with the channels that it takes besides the latent's.

    Raises:
        UserError: it takes fewer than the latent has, or predicts another number.
    """
    further = unet.in_channels - latent_channels
    if further < 0:
        raise options.refused("in_channels", unet.in_channels, f"the latent has {latent_channels} channels")
    if unet.out_channels != latent_channels:
        raise options.refused("out_channels", unet.out_channels, f"the latent has {latent_channels} channels")
    return replace(unet, config=replace(unet.config, concat_channels=further))


def _plain_options(options: Options, transformer: bool) -> dict[str, Any]:
    dims = options.choose("dims", (1, 2, 3), 2)
    if transformer and dims != 2:
        raise options.refused("dims", dims, "the original's spatial transformers are for images, dims=2")
    resample_with_res_blocks = options.flag("resblock_updown", False)
    if not resample_with_res_blocks:
        options.only("conv_resample", True, because="resolution is changed by a convolution or by residual blocks only")
    options.ignore("conv_resample")
    return {
        "dropout": options.number("dropout", 0.0),
        "spatial_dims": dims,
        "scale_shift_norm": options.flag("use_scale_shift_norm", False),
        "resample_with_res_blocks": resample_with_res_blocks,
        "num_codebook_ids": options.whole_or_none("n_embed"),
    }


def _class_options(options: Options) -> dict[str, Any]:
    classes = options.raw("num_classes", None)
    if classes == "sequential":
        return {"vector_dim": options.whole("adm_in_channels")}
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        raise options.refused("num_classes", classes, "use a number of classes, `sequential` or null")
    options.ignore("adm_in_channels")  # the original looks at it with `sequential` only
    return {"num_classes": classes}


def _block_options(options: Options, levels: int) -> dict[str, Any]:
    res_blocks = options.whole_or_wholes("num_res_blocks")
    attended = options.wholes_or_none("num_attention_blocks")
    per_level = res_blocks if isinstance(res_blocks, tuple) else (res_blocks,) * levels
    if attended and any(a > r for a, r in zip(attended, per_level, strict=False)):
        because = f"attention follows residual blocks, and there are num_res_blocks={list(per_level)}"
        raise options.refused("num_attention_blocks", list(attended), because)
    return {"num_res_blocks": res_blocks, "num_attention_blocks": attended}


def _attention_options(options: Options, levels: int, transformer: bool) -> dict[str, Any]:
    factors = options.wholes("attention_resolutions")
    attended = tuple(level for level in range(levels) if 2**level in factors)
    values: dict[str, Any] = {"attention_levels": attended}
    if not transformer:  # plain attention looks at none of these, but the middle always has it
        options.ignore(*_OF_TRANSFORMERS)
        return values | {"attention": "self"}
    options.choose("spatial_transformer_attn_type", ("softmax", "softmax-xformers"), "softmax")
    crossing = _flags(options, "disable_self_attentions", levels)
    return values | {
        "attention": "transformer",
        "mid_attention": not options.flag("disable_middle_transformer", False),
        "transformer_depth": options.whole_or_wholes("transformer_depth", 1),
        "mid_transformer_depth": options.whole_or_none("transformer_depth_middle"),
        "cross_attention_only_levels": tuple(level for level in attended if crossing[level]),
        "mid_cross_attention_only": options.flag("disable_middle_self_attn", False),
        "linear_projection": options.flag("use_linear_in_transformer", False),
    }


def _flags(options: Options, name: str, levels: int) -> list[bool]:
    flags = options.raw(name, None)
    if flags is None:
        return [False] * levels
    if not isinstance(flags, list | tuple) or len(flags) != levels or not all(isinstance(f, bool) for f in flags):
        raise options.refused(name, flags, f"give true or false for each of the {levels} levels, or null")
    return list(flags)


def _head_options(options: Options, values: dict[str, Any], transformer: bool, legacy: bool) -> dict[str, Any]:
    given, width = options.whole("num_heads", _UNSET), options.whole("num_head_channels", _UNSET)
    upsample = options.whole("num_heads_upsample", _UNSET)
    if given == width == _UNSET:
        raise options.refused("num_heads", _UNSET, "set num_heads or num_head_channels")
    heads = _Heads(given, width, given if upsample == _UNSET else upsample, transformer, legacy)
    down = _heads_of_levels(options, heads, values, "down")
    up = _heads_of_levels(options, heads, values, "up")
    channels = {level: values["base_channels"] * values["channel_mult"][level] for level in down}
    if width != _UNSET and all(channels[level] == down[level] * width for level in down):
        return {"num_head_channels": width, "num_heads": None}
    differs = any(up[level] != down[level] for level in values["attention_levels"])
    levels = len(values["channel_mult"])
    return {
        "num_head_channels": None,
        "num_heads": _per_level(down, levels),
        "num_heads_up": _per_level(up, levels) if differs else None,
    }


def _heads_of_levels(options: Options, heads: _Heads, values: dict[str, Any], place: Place) -> dict[int, int]:
    """Heads of every level with attention, and of the last for the middle."""
    lowest = len(values["channel_mult"]) - 1
    middle = [lowest] if values.get("mid_attention", True) and place == "down" else []
    found: dict[int, int] = {}
    for level in (*values["attention_levels"], *middle):
        channels = values["base_channels"] * values["channel_mult"][level]
        found[level] = heads.at(channels, place)
        if not found[level]:
            name = "num_heads" if heads.num_head_channels == _UNSET else "num_head_channels"
            because = f"it does not divide the {channels} channels of level {level}"
            raise options.refused(name, getattr(heads, name), because)
    return found or {lowest: 1}


def _per_level(heads: dict[int, int], levels: int) -> int | tuple[int, ...]:
    if len(set(heads.values())) == 1:
        return next(iter(heads.values()))
    return tuple(heads.get(level, 1) for level in range(levels))


def _context_dim(options: Options, transformer: bool, library: Library) -> int | None:
    width = options.raw("context_dim", None)
    widths = list(width) if isinstance(width, list | tuple) else [width]
    if widths == [None] and (library == "sgm" or not transformer):
        return None
    if not transformer:
        raise options.refused("context_dim", width, "plain attention sees no context; set use_spatial_transformer")
    if len(set(widths)) != 1 or not isinstance(widths[0], int):
        raise options.refused("context_dim", width, "spatial transformers need the one width of their context")
    return widths[0]
