"""The autoencoders of diffusers, `AutoencoderKL` and `VQModel`: configuration and parameters, both ways.

Their `latent_channels` are those between encoder and 1x1 convolution, our `z_channels`; the latent of a VQModel has
`vq_embed_dim`. Nothing depends on `sample_size`, nor, in float32, on `force_upcast`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import rng
from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig, Experiment
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers import blocks
from ldm_jax.interop.diffusers.latents import read_statistics, write_statistics
from ldm_jax.interop.diffusers.options import (
    ACTIVATIONS,
    Options,
    channel_mult,
    complete,
    level_blocks,
    number,
    read_options,
    require_defaults,
    require_written,
)
from ldm_jax.interop.foreign_options import build, refusal
from ldm_jax.interop.mapping import Slot, SlotOf, TensorSource, read_params, torch_layout
from ldm_jax.model import Params


@dataclass(frozen=True, kw_only=True)
class DiffusersAutoencoder:
    """An autoencoder as diffusers describes it: our configuration, and what is no part of that."""

    config: AutoencoderKLConfig | AutoencoderVQConfig
    in_channels: int = 3
    """Channels of the picture."""
    out_channels: int = 3
    """Channels of the reconstruction."""
    sample_size: int | tuple[int, ...] = 32
    """Size of the pictures that the model was trained at; nothing depends on it."""
    latent_mean: tuple[float, ...] = (0.0,)
    """Mean of the latents: one for all channels, or one for each."""
    latent_std: tuple[float, ...] = (1.0,)
    """Spread of the latents: one for all channels, or one for each."""


_OF_BOTH: Options = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}
OPTIONS_KL: Options = {
    **_OF_BOTH,
    "latent_channels": 4,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
"""Every option of AutoencoderKL and its default."""

OPTIONS_VQ: Options = {
    **_OF_BOTH,
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "vq_embed_dim": None,
    "norm_type": "group",
    "lookup_from_codebook": False,
    "force_upcast": False,
}
"""Every option of VQModel and its default."""

_USABLE: Mapping[str, tuple] = {"act_fn": ACTIVATIONS, "mid_block_add_attention": (True, False)}
_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}

_WRITTEN = {
    *("base_channels", "channel_mult", "num_res_blocks", "attention_levels", "decoder_attention_levels"),
    *("mid_attention", "latent_channels", "z_channels", "quant_conv", "post_quant_conv", "num_groups", "codebook_size"),
}
_OF_TRAINING = {"dropout", "kl_weight", "codebook_weight", "commitment_cost"}


def read_autoencoder_config(config: Options, where: str) -> DiffusersAutoencoder:
    """What the config.json of an autoencoder describes.

    Raises:
        UserError: an option is unknown, or has a value that our autoencoders cannot follow; `where` names the file.
    """
    match config.get("_class_name"):
        case "AutoencoderKL":
            usable = {**_USABLE, "use_quant_conv": (True, False), "use_post_quant_conv": (True, False)}
            return _read_kl(read_options(config, OPTIONS_KL, usable, where), where)
        case "VQModel":
            return _read_vq(read_options(config, OPTIONS_VQ, {**_USABLE, "norm_type": ("group",)}, where), where)
        case name:
            raise refusal(where, "_class_name", name, "usable: 'AutoencoderKL', 'VQModel'")


def _read_kl(options: Options, where: str) -> DiffusersAutoencoder:
    behind, before = options["use_quant_conv"], options["use_post_quant_conv"]
    fields = {
        **_read_fields(options, where),
        "latent_channels": number(options, "latent_channels", where),
        "quant_conv": behind,
        "post_quant_conv": None if before == behind else before,
    }
    return _read(options, build(AutoencoderKLConfig, fields, where), where)


def _read_vq(options: Options, where: str) -> DiffusersAutoencoder:
    z_channels = number(options, "latent_channels", where)
    own = options["vq_embed_dim"] is not None and options["vq_embed_dim"] != z_channels
    fields = {
        **_read_fields(options, where),
        "latent_channels": number(options, "vq_embed_dim", where) if own else z_channels,
        "z_channels": z_channels if own else None,
        "codebook_size": number(options, "num_vq_embeddings", where),
    }
    return _read(options, build(AutoencoderVQConfig, fields, where), where)


def _read(options: Options, config: AutoencoderKLConfig | AutoencoderVQConfig, where: str) -> DiffusersAutoencoder:
    mean, std = read_statistics(options, where)
    return DiffusersAutoencoder(
        config=config,
        in_channels=number(options, "in_channels", where),
        out_channels=number(options, "out_channels", where),
        sample_size=options["sample_size"],
        latent_mean=mean,
        latent_std=std,
    )


def _read_fields(options: Options, where: str) -> dict[str, Any]:
    down = level_blocks(options, "down_block_types", _DOWN, where)
    rising = level_blocks(options, "up_block_types", _UP, where)[::-1]  # by level, as ours
    encoder, decoder = (tuple(level for level, attention in enumerate(way) if attention) for way in (down, rising))
    return {
        **channel_mult(options, where),
        "num_res_blocks": number(options, "layers_per_block", where),
        "num_groups": number(options, "norm_num_groups", where),
        "attention_levels": encoder,
        "decoder_attention_levels": None if decoder == encoder else decoder,
        "mid_attention": options["mid_block_add_attention"],
    }


def write_autoencoder_config(autoencoder: DiffusersAutoencoder) -> dict[str, Any]:
    """A complete config.json: the inverse of `read_autoencoder_config`.

    Raises:
        UserError: diffusers has no option for what the configuration asks for; the field is named.
    """
    config = autoencoder.config
    require_defaults(config, _WRITTEN | _OF_TRAINING)
    levels = range(len(config.channel_mult))
    decoder = config.attention_levels if config.decoder_attention_levels is None else config.decoder_attention_levels
    options = {
        "in_channels": autoencoder.in_channels,
        "out_channels": autoencoder.out_channels,
        "sample_size": autoencoder.sample_size,
        "block_out_channels": tuple(config.channels_at(level) for level in levels),
        "down_block_types": tuple(_type_of(_DOWN, level in config.attention_levels) for level in levels),
        "up_block_types": tuple(_type_of(_UP, level in decoder) for level in reversed(levels)),
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": config.num_groups,
        "mid_block_add_attention": config.mid_attention,
        "latent_channels": config.z_channels or config.latent_channels,
    }
    if isinstance(config, AutoencoderVQConfig):
        return complete("VQModel", OPTIONS_VQ, {**options, **_write_vq(autoencoder, config)})
    return complete("AutoencoderKL", OPTIONS_KL, {**options, **_write_kl(autoencoder, config)})


def _write_kl(autoencoder: DiffusersAutoencoder, config: AutoencoderKLConfig) -> dict[str, Any]:
    one = config.z_channels in (None, config.latent_channels)
    require_written(one, config, "z_channels", f"AutoencoderKL has the {config.latent_channels} of the latent")
    options = {"use_quant_conv": config.quant_conv, "use_post_quant_conv": config.has_post_quant_conv}
    return {**options, **write_statistics(autoencoder.latent_mean, autoencoder.latent_std)}


def _write_vq(autoencoder: DiffusersAutoencoder, config: AutoencoderVQConfig) -> dict[str, Any]:
    both = config.quant_conv and config.has_post_quant_conv
    require_written(both, config, "quant_conv", "VQModel has both 1x1 convolutions")
    mean, std = autoencoder.latent_mean, autoencoder.latent_std
    if set(mean) != {0} or len(set(std)) != 1:
        raise UserError(
            f"latents of mean {mean} and spread {std} cannot be written for diffusers: VQModel has one scaling_factor "
            "and no mean"
        )
    return {
        "vq_embed_dim": config.latent_channels,
        "num_vq_embeddings": config.codebook_size,
        "scaling_factor": write_statistics(mean, std)["scaling_factor"],
    }


def _type_of(types: Mapping[str, bool], attention: bool) -> str:
    return next(name for name, has_attention in types.items() if has_attention == attention)


_OUTSIDE_LEVELS = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}


def autoencoder_slot(autoencoder: DiffusersAutoencoder, *, before_2023: bool = False) -> SlotOf:
    """Names of the parameters; `before_2023` with the first names of attention."""
    lowest = len(autoencoder.config.channel_mult) - 1
    attention = blocks.plain_attention(before_2023)

    def inner_name(module: str) -> str:
        """Inside the encoder or the decoder."""
        level, _, part = module.partition("/")
        if module in _OUTSIDE_LEVELS:
            return _OUTSIDE_LEVELS[module]
        if level == "mid":
            return f"mid_block.{blocks.block(part, attention)}"
        kind, index = level.split("_")
        direction = kind.removesuffix("sample")
        index = int(index) if direction == "down" else lowest - int(index)  # diffusers' way up begins with 0
        name = blocks.block(part, attention) if kind == direction else f"{kind}rs.0.{part}"
        return f"{direction}_blocks.{index}.{name}"

    def module_name(module: str) -> str:
        side, _, inner = module.partition("/")
        return f"{side}.{inner_name(inner)}" if inner else {"codebook": "quantize.embedding"}.get(side, side)

    def slot_of(path: str) -> Slot:
        leaf, layout = torch_layout(path)
        return Slot(f"{module_name(path.rsplit('/', 1)[0])}.{leaf}", layout)

    return slot_of


@functools.cache
def abstract_autoencoder_params(autoencoder: DiffusersAutoencoder) -> Params:
    """The parameters' shapes, for the channels of the record."""
    module = make_autoencoder(autoencoder.config, autoencoder.out_channels, "float32")
    size = autoencoder.config.downsample_factor
    image, keys = jnp.zeros((1, size, size, autoencoder.in_channels)), rng.sample_keys(rng.root_key(0), jnp.arange(1))
    return jax.eval_shape(module.init, jax.random.key(0), image, keys)["params"]


def read_autoencoder_params(source: TensorSource, autoencoder: DiffusersAutoencoder, where: str) -> Params:
    """The parameters from a file that must hold exactly them, float32.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; every one is named.
    """
    slot_of = autoencoder_slot(autoencoder, before_2023=blocks.has_names_from_before_2023(source.names()))
    return read_params(source, slot_of, abstract_autoencoder_params(autoencoder), where=where)


def require_same_channels(autoencoder: DiffusersAutoencoder, folder: Path) -> None:
    """Refuse an autoencoder that is none.

    Raises:
        UserError: pictures come out with other channels than they go in with.
    """
    if autoencoder.in_channels != autoencoder.out_channels:
        raise UserError(
            f"{folder}: the autoencoder takes {autoencoder.in_channels} channels and puts out "
            f"{autoencoder.out_channels}; both must be the same"
        )


def picture_size(size: int | tuple[int, ...], autoencoder: DiffusersAutoencoder, denoiser_levels: int = 1) -> int:
    """Side of square pictures of at least this size that autoencoder and denoiser can halve."""
    side = max(size) if isinstance(size, tuple) else size
    whole = autoencoder.config.downsample_factor * 2 ** (denoiser_levels - 1)
    return -(-side // whole) * whole


def describe_autoencoder(experiment: Experiment, latent: Params) -> DiffusersAutoencoder:
    """The autoencoder of an experiment as diffusers has it, with the statistics of its latents."""
    channels = experiment.data.image_channels
    mean, std = (tuple(float(x) for x in np.asarray(latent[name])) for name in ("mean", "std"))
    return DiffusersAutoencoder(
        config=experiment.first_stage.autoencoder,
        in_channels=channels,
        out_channels=channels,
        sample_size=experiment.data.image_size,
        latent_mean=_one_or_all(mean),
        latent_std=_one_or_all(std),
    )


def _one_or_all(values: tuple[float, ...]) -> tuple[float, ...]:
    return values[:1] if len(set(values)) == 1 else values
