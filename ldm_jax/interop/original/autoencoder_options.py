"""The options of the original code's first stages (`embed_dim`, `n_embed`, `ddconfig`), to our configuration and back.

`attn_resolutions` are sizes of feature maps for pictures of `resolution`; here attention has levels.
"""

from typing import Any

from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.autoencoder import OriginalAutoencoder

NUM_GROUPS = 32
_KL = (
    *("ldm.models.autoencoder.AutoencoderKL", "sgm.models.autoencoder.AutoencoderKL"),
    *("sgm.models.autoencoder.AutoencoderKLInferenceWrapper", "sgm.models.autoencoder.AutoencoderKLModeOnly"),
)
_VQ = (
    *("ldm.models.autoencoder.VQModelInterface", "ldm.models.autoencoder.VQModel"),
    *("taming.models.vqgan.VQModel", "sgm.models.autoencoder.AutoencoderLegacyVQ"),
)
_IRRELEVANT = (  # what is trained how, where it is read from and how it is shown
    *("lossconfig", "loss_config", "ckpt_path", "ckpt_engine", "ignore_keys", "image_key", "input_key", "monitor"),
    *("colorize_nlabels", "batch_resize_range", "scheduler_config", "lr_g_factor", "use_ema", "ema_decay"),
    *("learn_logvar", "max_batch_size", "optimizer_config", "disc_start_iter", "diff_boost_factor"),
)


def autoencoder_from_options(target: str, options: Options) -> OriginalAutoencoder:
    """The autoencoder that a class and its options (`first_stage_config`) describe.

    Raises:
        UserError: the class or an option is not known, or has a value that is not supported.
    """
    if target not in (*_KL, *_VQ):
        raise UserError(
            f"{options.where}: target={target} is not supported; known first stages: {', '.join(_KL + _VQ)}"
        )
    options.ignore(*_IRRELEVANT)
    latent_channels, dd = options.whole("embed_dim"), options.table("ddconfig")
    image_channels, resolution = dd.whole("in_channels"), dd.whole("resolution")
    dd.only(
        "out_ch", image_channels, because=f"pictures go in with in_channels={image_channels} and come out with as many"
    )
    values: dict[str, Any] = _levels(dd, resolution) | {"latent_channels": latent_channels, "num_groups": NUM_GROUPS}
    z_channels = dd.whole("z_channels")
    values["z_channels"] = None if z_channels == latent_channels else z_channels
    dd.only("double_z", target in _KL, because="mean and variance come from an AutoencoderKL, and from no other")
    for name in ("tanh_out", "give_pre_end", "use_linear_attn"):
        dd.only(name, False, because="the decoder ends with its last convolution, and attention is plain")
    dd.only("resamp_with_conv", True, because="resolution is changed by a convolution only")
    dd.finish()
    codebook = "regularization" if target.startswith("sgm.") else "quantize"
    if target in _VQ:
        values["codebook_size"] = options.whole("n_embed")
        options.only("remap", None, because="indices count the codes as they are")
        options.flag("sane_index_shape", False)  # indices always have the latent's shape here
        config = AutoencoderVQConfig(**values)
    else:
        config = AutoencoderKLConfig(**values)
    options.finish()
    return OriginalAutoencoder(config=config, image_channels=image_channels, resolution=resolution, codebook=codebook)


def _levels(dd: Options, resolution: int) -> dict[str, Any]:
    multiples, sizes = dd.wholes("ch_mult", (1, 2, 4, 8)), dd.wholes("attn_resolutions")
    lowest = len(multiples) - 1
    attended = tuple(level for level in range(len(multiples)) if resolution // 2**level in sizes)
    # the decoder counts sizes from the lowest level
    on_the_way_up = tuple(
        level for level in range(len(multiples)) if resolution // 2**lowest * 2 ** (lowest - level) in sizes
    )
    has_attention = dd.choose("attn_type", ("vanilla", "vanilla-xformers", "none"), "vanilla") != "none"
    if has_attention and attended != on_the_way_up:
        because = f"resolution={resolution} does not halve to whole sizes, so encoder and decoder differ in attention"
        raise dd.refused("attn_resolutions", list(sizes), because)
    return {
        "base_channels": dd.whole("ch"),
        "channel_mult": multiples,
        "num_res_blocks": dd.whole("num_res_blocks"),
        "attention_levels": attended if has_attention else (),
        "mid_attention": has_attention,
        "dropout": dd.number("dropout", 0.0),
    }


def options_of_autoencoder(autoencoder: OriginalAutoencoder) -> dict[str, Any]:
    """Class and options (`first_stage_config`) that describe an autoencoder.

    Raises:
        UserError: the original code cannot express it; every setting that is in the way is named.
    """
    config, resolution = autoencoder.config, autoencoder.resolution
    _require_expressible(autoencoder)
    quantized = isinstance(config, AutoencoderVQConfig)
    params = {
        "embed_dim": config.latent_channels,
        **({"n_embed": config.codebook_size} if isinstance(config, AutoencoderVQConfig) else {}),
        "ddconfig": {
            "double_z": not quantized,
            "z_channels": config.z_channels or config.latent_channels,
            "resolution": resolution,
            "in_channels": autoencoder.image_channels,
            "out_ch": autoencoder.image_channels,
            "ch": config.base_channels,
            "ch_mult": list(config.channel_mult),
            "num_res_blocks": config.num_res_blocks,
            "attn_resolutions": [resolution // 2**level for level in config.attention_levels],
            "dropout": config.dropout,
            **({} if config.mid_attention else {"attn_type": "none"}),
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    return {"target": _VQ[0] if quantized else _KL[0], "params": params}


def _require_expressible(autoencoder: OriginalAutoencoder) -> None:
    config = autoencoder.config
    checks = {
        "num_groups": config.num_groups == NUM_GROUPS,
        "channel_mult": all(isinstance(m, int) for m in config.channel_mult),
        "attention_levels": config.mid_attention or not config.attention_levels,
        "quant_conv": config.quant_conv,
        "patch_size": config.patch_size == 1,
        "spatial_dims": config.spatial_dims == 2,
    }
    faults = [f"{name}={getattr(config, name)!r}" for name, expressible in checks.items() if not expressible]
    if faults:
        raise UserError(f"the original code cannot express {type(config).__name__}.{', '.join(faults)}")
    if autoencoder.resolution % config.downsample_factor:
        raise UserError(
            f"resolution={autoencoder.resolution} is not divisible by the autoencoder's downsample_factor="
            f"{config.downsample_factor}; the original counts its levels by their sizes"
        )
