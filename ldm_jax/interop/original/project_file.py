"""The project file of the original code (`project.yaml`, `config.yaml`, `v1-inference.yaml`), read.

It names classes (`target`) and their options (`params`). `LatentDiffusion` of ldm and its variants are known,
`DiffusionEngine` of sgm, and the first stages alone.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ldm_jax.config import (
    Conditioning,
    DiffusionConfig,
    EmbeddingConditioning,
    PredictionType,
    ScheduleConfig,
    ScheduleKind,
    SpatialConditioning,
    Unconditional,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.original.autoencoder import OriginalAutoencoder
from ldm_jax.interop.original.autoencoder_options import autoencoder_from_options
from ldm_jax.interop.original.conditioning import conditioning_from_options, label_conditioning
from ldm_jax.interop.original.engine import engine_from_options
from ldm_jax.interop.original.project import OriginalProject, Unsaid
from ldm_jax.interop.original.unet import OriginalUNet
from ldm_jax.interop.original.unet_options import unet_from_options, with_concatenation

_NOTHING = Unsaid()
_LDM = "ldm.models.diffusion.ddpm."
_VARIANTS: dict[str, tuple[str, ...]] = {  # and the modules that make their conditions outside of the model
    "LatentDiffusion": (),
    "Layout2ImgDiffusion": (),
    "LatentInpaintDiffusion": (),
    "LatentUpscaleFinetuneDiffusion": (),
    "LatentUpscaleDiffusion": ("low_scale_model",),
    "LatentDepth2ImageDiffusion": ("depth_model",),
    "ImageEmbeddingConditionedLatentDiffusion": ("embedder", "noise_augmentor"),
}
_ENGINE = "sgm.models.diffusion.DiffusionEngine"
_UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
_IRRELEVANT = (  # what is trained how, which batch entry is what, and what is logged
    *("ckpt_path", "ignore_keys", "load_only_unet", "monitor", "first_stage_key", "cond_stage_key", "log_every_t"),
    *("clip_denoised", "scheduler_config", "use_positional_encodings", "logvar_init", "cond_stage_trainable"),
    *("make_it_fit", "ucg_training", "reset_ema", "reset_num_ema_updates", "concat_keys", "finetune_keys"),
    *("keep_finetune_dims", "c_concat_log_start", "c_concat_log_end", "masked_image_key", "low_scale_config"),
    *("low_scale_key", "noise_level_key", "depth_stage_config", "embedder_config", "embedding_key"),
    *("embedding_dropout", "freeze_embedder", "noise_aug_config", "reshuffle_patch_size"),
)
_CHANGES_NOTHING = {
    "original_elbo_weight": (0.0, "the loss is the simple one"),
    "l_simple_weight": (1.0, "the loss is the simple one"),
    "v_posterior": (0.0, "the posterior's variance is the lower bound"),
    "learn_logvar": (False, "the loss has no learned weights"),
    "num_timesteps_cond": (1, "conditions have no noise"),
    "cond_stage_forward": (None, "conditioners are called as they are"),
    "force_null_conditioning": (False, "a model without conditions is given none"),
    "given_betas": (None, "the schedule follows from beta_schedule"),
    "cosine_s": (8e-3, "the cosine schedule has its published offset"),
}
_SCHEDULES: dict[str, ScheduleKind] = {
    "linear": "scaled_linear",
    "sqrt_linear": "linear",
    "cosine": "cosine",
    "squaredcos_cap_v2": "cosine",
    "sqrt": "sqrt",
}
_LOSSES: dict[str, Literal["l1", "l2"]] = {"l1": "l1", "l2": "l2"}
_PREDICTIONS: dict[str, PredictionType] = {"eps": "epsilon", "x0": "x0", "v": "v"}
_FEEDS = {  # what each conditioning_key feeds: further channels, context tokens, an embedding beside the time's
    "concat": (True, False, False),
    "crossattn": (False, True, False),
    "adm": (False, False, True),
    "hybrid": (True, True, False),
    "hybrid-adm": (True, True, True),
    "crossattn-adm": (False, True, True),
}


class _Loader(yaml.SafeLoader):
    """YAML as the original code reads it: `1e-4` is a number too, not only `1.0e-4`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"), list("-+.0123456789")
)


def read_project(path: Path, unsaid: Unsaid = _NOTHING) -> OriginalProject | OriginalAutoencoder:
    """What a project file describes: a latent diffusion model, or a first stage alone.

    Raises:
        UserError: the file is missing, is no YAML, or describes something that is not supported.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the project file of the checkpoint") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give the project file of the checkpoint") from None
    return parse_project(parse_yaml(text, str(path)), str(path), unsaid)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML file says, read with no more than plain values.

    Raises:
        UserError: it is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None


def parse_project(values: Any, where: str, unsaid: Unsaid = _NOTHING) -> OriginalProject | OriginalAutoencoder:
    """`read_project` for a file that is already read."""
    model = Options(values, where).table("model")
    model.ignore("base_learning_rate")
    target, options = model.target()
    if target == _ENGINE:
        return engine_from_options(options, unsaid)
    if not target.startswith(_LDM):
        return autoencoder_from_options(target, options)
    variant = target.removeprefix(_LDM)
    if variant not in _VARIANTS:
        raise UserError(f"{where}: target={target} is not supported; known: {', '.join(_VARIANTS)}, {_ENGINE}")
    options.ignore(*_IRRELEVANT)
    return replace(_latent_diffusion(options, unsaid), other_stages=_VARIANTS[variant])


def _latent_diffusion(options: Options, unsaid: Unsaid) -> OriginalProject:
    autoencoder = autoencoder_from_options(*options.table("first_stage_config").target())
    latent_channels = autoencoder.config.latent_channels
    options.only("channels", latent_channels, because=f"the first stage has embed_dim={latent_channels}")
    unet = _unet(options, latent_channels)
    stage = options.raw("cond_stage_config")
    conditioning = _conditioning(options, unet, stage, unsaid)
    diffusion = diffusion_from_options(options)
    options.flag("scale_by_std", False)  # the factor that it measured is in the file
    latent_size = options.whole("image_size", 256)
    project = OriginalProject(
        unet=unet,
        autoencoder=autoencoder,
        conditioning=conditioning,
        diffusion=diffusion,
        scale_factor=options.number("scale_factor", 1.0),
        image_size=unsaid.image_size or latent_size * autoencoder.config.downsample_factor,
        use_ema=options.flag("use_ema", True),
        first_stage_conditions=stage == "__is_first_stage__",
    )
    options.finish()
    return project


def _unet(options: Options, latent_channels: int) -> OriginalUNet:
    table = options.table("unet_config")
    table.only("sequential_crossattn", False, because="all transformer blocks see one context")
    target, params = table.target()
    if target != _UNET:
        raise UserError(f"{table.where}: target={target} is not supported; known: {_UNET}")
    return with_concatenation(unet_from_options(params), latent_channels, params)


def diffusion_from_options(options: Options) -> DiffusionConfig:
    """Schedule, prediction and loss from the options of DDPM.

    Raises:
        UserError: an option has a value that is not supported.
    """
    for name, (value, because) in _CHANGES_NOTHING.items():
        options.only(name, value, because=because)
    schedule = ScheduleConfig(
        kind=options.choose("beta_schedule", _SCHEDULES, "linear"),
        num_train_timesteps=options.whole("timesteps", 1000),
        beta_start=options.number("linear_start", 1e-4),
        beta_end=options.number("linear_end", 2e-2),
    )
    return DiffusionConfig(
        schedule=schedule,
        prediction_type=options.choose("parameterization", _PREDICTIONS, "eps"),
        loss=options.choose("loss_type", _LOSSES, "l2"),
        cond_drop_prob=0.0,
    )


# --- conditioning ----------------------------------------------------------------------------------------------------


def _conditioning(options: Options, unet: OriginalUNet, stage: Any, unsaid: Unsaid) -> Conditioning:
    key = _conditioning_key(options, unet, is_given=stage == "__is_unconditional__")
    if stage == "__is_unconditional__":
        return _given(unet, unsaid.null_class)
    if stage == "__is_first_stage__" and key == "concat":
        return Unconditional()
    if isinstance(stage, str):
        because = "known: __is_unconditional__, __is_first_stage__ with conditioning_key=concat, and classes"
        raise options.refused("cond_stage_config", stage, because)
    target, params = Options(stage, f"{options.where}.cond_stage_config").target()
    if target == "torch.nn.Identity":
        return _given(unet, unsaid.null_class)
    conditioning = conditioning_from_options(target, params, unsaid.null_class, unsaid.find_model)
    is_map = isinstance(conditioning, SpatialConditioning)
    if key != "concat" if is_map else not key or not _FEEDS[key][1]:
        raise options.refused("conditioning_key", key, f"{target} needs {'concat' if is_map else 'crossattn'}")
    for name, given in (("concat_channels", unet.config.concat_channels), ("context_dim", unet.context_dim)):
        if getattr(conditioning, name, given) != given:
            raise UserError(f"{params.where}: {target} has {name}={getattr(conditioning, name)}, the U-Net {given}")
    return conditioning


def _conditioning_key(options: Options, unet: OriginalUNet, *, is_given: bool) -> str:
    """How conditions reach the U-Net: as the file says, and where it leaves that to a default or has no conditioning
    stage (`is_given`), as the U-Net is made for."""
    config = unet.config
    embeds = config.num_classes is not None or config.vector_dim is not None
    wanted = (config.concat_channels > 0, unet.context_dim is not None, embeds)
    made_for = next((key for key, feeds in _FEEDS.items() if feeds == wanted), "")
    key, concat_mode = options.raw("conditioning_key", None), options.raw("concat_mode", None)
    if is_given:
        key = made_for  # whatever is written
    elif key is None:
        key = made_for if concat_mode is None else ("concat" if concat_mode else "crossattn")
    if key not in ("", *_FEEDS):
        raise options.refused("conditioning_key", key, f"known: {', '.join(_FEEDS)}")
    if _FEEDS.get(key, (False, False, False)) != wanted:
        because = (
            f"the U-Net is made for {made_for or 'another'}: context_dim={unet.context_dim}, "
            f"num_classes={config.num_classes}, adm_in_channels={config.vector_dim}, and {config.concat_channels} "
            "channels besides the latent's"
        )
        raise options.refused("conditioning_key", key or None, because)
    return key


def _given(unet: OriginalUNet, null_class: bool | None) -> Conditioning:
    """Conditions that are used as they come: embeddings, a map or labels."""
    if unet.context_dim is not None:
        return EmbeddingConditioning(context_dim=unet.context_dim)
    if unet.config.num_classes is not None:
        return label_conditioning(unet.config.num_classes, null_class)
    concat_channels = unet.config.concat_channels
    return SpatialConditioning(in_channels=concat_channels) if concat_channels else Unconditional()
