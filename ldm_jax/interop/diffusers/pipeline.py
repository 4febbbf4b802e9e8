"""Whole pipelines of diffusers, folders with a `model_index.json`, as models of this project.

A pipeline is a table of components: autoencoder, U-Net, scheduler, and where there is text one or two encoders with
their tokenizers. What does not draw (safety checker, feature extractor, watermark) is left aside.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from ldm_jax import sharding
from ldm_jax.conditioning.tokenizer import PromptEncoder
from ldm_jax.config import (
    ClipTextConditioning,
    Conditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    SamplingConfig,
    SdxlConditioning,
    TextConditioning,
    Unconditional,
    UNetConfig,
)
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import read_json
from ldm_jax.interop.diffusers.autoencoder import (
    DiffusersAutoencoder,
    picture_size,
    read_autoencoder_config,
    read_autoencoder_params,
    require_same_channels,
)
from ldm_jax.interop.diffusers.component import TRANSFORMERS, read_config, read_weights
from ldm_jax.interop.diffusers.schedulers import Scheduler, read_scheduler
from ldm_jax.interop.diffusers.unet import read_unet_config, read_unet_params
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.given import imported_given
from ldm_jax.interop.latents import latent_params
from ldm_jax.interop.transformers.ldm_bert import read_ldm_bert, read_ldm_bert_config
from ldm_jax.interop.transformers.text import read_clip_text, read_clip_text_config, sdxl_conditioning
from ldm_jax.interop.transformers.tokenizer_files import read_tokenizer, with_marks
from ldm_jax.model import Params, make_model
from ldm_jax.sampling.session import ImportedSampler, Session

logger = logging.getLogger(__name__)

Text = Literal["none", "bert", "clip", "sdxl"]


class Pipeline(NamedTuple):
    """What a pipeline's class says: its text encoders, the names of its parts, and how many steps it takes."""

    text: Text
    autoencoder: str = "vae"
    steps: int = 50
    guidance_scale: float = 1.0
    eta: float = 0.0


PIPELINES = {
    "StableDiffusionPipeline": Pipeline("clip", guidance_scale=7.5),
    "StableDiffusionImg2ImgPipeline": Pipeline("clip", guidance_scale=7.5),
    "StableDiffusionInpaintPipeline": Pipeline("clip", guidance_scale=7.5),
    "StableDiffusionUpscalePipeline": Pipeline("clip", steps=75, guidance_scale=9.0),
    "StableDiffusionXLPipeline": Pipeline("sdxl", guidance_scale=5.0),
    "StableDiffusionXLImg2ImgPipeline": Pipeline("sdxl", guidance_scale=5.0),
    "StableDiffusionXLInpaintPipeline": Pipeline("sdxl", guidance_scale=5.0),
    "LDMTextToImagePipeline": Pipeline("bert", "vqvae", guidance_scale=5.0),
    "LDMPipeline": Pipeline("none", "vqvae"),
    "LDMSuperResolutionPipeline": Pipeline("none", "vqvae", steps=100),
}
"""Classes of pipelines that can be read, with the defaults of their calls."""

_ASIDE = frozenset({"safety_checker", "feature_extractor", "image_encoder", "watermark", "low_res_scheduler"})
_SETTINGS = frozenset({"requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "max_noise_level"})
_TEXT_PARTS: dict[Text, tuple[str, ...]] = {
    "none": (),
    "bert": ("bert", "tokenizer"),
    "clip": ("text_encoder", "tokenizer"),
    "sdxl": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
}


def is_pipeline(folder: Path) -> bool:
    """Whether a folder claims to be a pipeline."""
    return (folder / "model_index.json").is_file()


def read_pipeline(folder: Path, variant: str | None = None) -> Session:
    """The model in a pipeline's folder, its parameters in float32, with its scheduler as the sampler `imported`.

    Args:
        folder: with `model_index.json` and a folder for each component.
        variant: of the weights, such as "fp16"; by default the one without a name, or the only one there is.

    Raises:
        UserError: a class or an option is not supported, a file is missing or damaged, weights do not fit.
    """
    index = read_json(folder / "model_index.json")
    pipeline = _check_index(folder, index)
    unet = read_unet_config(*read_config(folder / "unet"))
    autoencoder = read_autoencoder_config(*read_config(folder / pipeline.autoencoder))
    scheduler, sampler = imported_sampler(read_json(folder / "scheduler" / "scheduler_config.json"))
    conditioning, tokenizers = _read_conditioning(folder, index, pipeline, unet)
    experiment = _experiment(folder, pipeline, unet, autoencoder, scheduler, conditioning)
    params = {
        "autoencoder": read_weights(
            folder / pipeline.autoencoder, read_autoencoder_params, autoencoder, variant=variant
        ),
        "latent": latent_params(autoencoder.latent_mean, autoencoder.latent_std, autoencoder.config.latent_channels),
        "conditioner": _read_conditioner(folder, variant, conditioning),
        "denoiser": read_weights(folder / "unet", read_unet_params, unet, variant=variant),
    }
    encoder = PromptEncoder(tokenizers, warn=True) if tokenizers else None
    return Session(
        experiment,
        make_model(experiment, sharding.make_mesh(experiment.mesh)),
        params,
        encoder,
        imported_sampler=sampler,
    )


def imported_sampler(options: Mapping[str, Any]) -> tuple[Scheduler, ImportedSampler]:
    """A scheduler from its `scheduler_config.json`, and the same as a session takes it."""
    scheduler = read_scheduler(options)

    def make(config: SamplingConfig, skip: int = 0) -> Sampler:
        return scheduler.make_sampler(config.num_sample_steps, eta=config.eta, skip=skip)

    return scheduler, ImportedSampler(options, make)


def _check_index(folder: Path, index: Mapping[str, Any]) -> Pipeline:
    where, name = folder / "model_index.json", index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        raise UserError(f"{where}: _class_name={name!r} is no pipeline known here; known: {', '.join(PIPELINES)}")
    pipeline = PIPELINES[name]
    wanted = {"unet", "scheduler", pipeline.autoencoder, *_TEXT_PARTS[pipeline.text]}
    present = {key for key, value in index.items() if isinstance(value, list) and value[0] is not None}
    if missing := sorted(wanted - present):
        raise UserError(f"{where} has no {', '.join(missing)}, which a {name} needs")
    known = wanted | _ASIDE | _SETTINGS
    if unknown := sorted(key for key in index if key not in known and not key.startswith("_") and key in present):
        raise UserError(f"{where}: {', '.join(unknown)} of a {name} is not supported")
    if aside := sorted(present & _ASIDE):
        logger.info("%s: left aside: %s", folder, ", ".join(aside))
    return pipeline


def _read_conditioning(
    folder: Path, index: Mapping[str, Any], pipeline: Pipeline, unet: DiffusersUNet
) -> tuple[Conditioning, dict[str, Tokenizer]]:
    """The conditioner's configuration, with the marks that its tokenizer writes, and the tokenizers."""
    match pipeline.text:
        case "none":
            return Unconditional(), {}
        case "bert":
            config = read_ldm_bert_config(*read_config(folder / "bert"))
            tokenizer = read_tokenizer(folder / "tokenizer", config.context_length)
            return with_marks(config, tokenizer), {"tokens": tokenizer}
        case "clip":
            config, tokenizer = _read_clip(folder, index, "")
            return config, {"tokens": tokenizer}
        case "sdxl":
            (first, one), (second, other) = _read_clip(folder, index, ""), _read_clip(folder, index, "_2")
            config = sdxl_conditioning(first, second, unet.size_dim or 256)
            zeros = index.get("force_zeros_for_empty_prompt", True)
            config = dataclasses.replace(config, no_prompt="zeros" if zeros else "empty")
            return config, {"tokens": one, "tokens_2": other}


def _read_clip(folder: Path, index: Mapping[str, Any], suffix: str) -> tuple[ClipTextConditioning, Tokenizer]:
    values, where = read_config(folder / f"text_encoder{suffix}")
    config = read_clip_text_config(values, where, architecture=index[f"text_encoder{suffix}"][1])
    tokenizer = read_tokenizer(folder / f"tokenizer{suffix}", config.context_length)
    return with_marks(config, tokenizer), tokenizer


def _read_conditioner(folder: Path, variant: str | None, config: Conditioning) -> Params:
    match config:
        case TextConditioning():
            return read_weights(folder / "bert", read_ldm_bert, config, TRANSFORMERS, variant)
        case ClipTextConditioning():
            return read_weights(folder / "text_encoder", read_clip_text, config, TRANSFORMERS, variant)
        case SdxlConditioning():
            parts = {"first": ("text_encoder", config.first), "second": ("text_encoder_2", config.second)}
            return {
                name: read_weights(folder / part, read_clip_text, text, TRANSFORMERS, variant)
                for name, (part, text) in parts.items()
            }
        case _:
            return {}


def _experiment(
    folder: Path,
    pipeline: Pipeline,
    unet: DiffusersUNet,
    autoencoder: DiffusersAutoencoder,
    scheduler: Scheduler,
    conditioning: Conditioning,
) -> Experiment:
    if scheduler.schedule is None:
        raise UserError(f"{folder / 'scheduler'}: {scheduler.name} has no timesteps, which the U-Net asks for")
    latent_channels = autoencoder.config.latent_channels
    if unet.out_channels != latent_channels:
        raise UserError(
            f"{folder}: the U-Net predicts {unet.out_channels} channels, but latents have {latent_channels}; a learned "
            "variance is not supported"
        )
    require_same_channels(autoencoder, folder)
    schedule, total = scheduler.schedule, scheduler.schedule.num_train_timesteps
    sampling = SamplingConfig(
        sampler="imported",
        num_sample_steps=min(pipeline.steps, total),
        guidance_scale=pipeline.guidance_scale,
        eta=pipeline.eta,
    )
    channels: Any = autoencoder.in_channels
    denoiser = _denoiser(folder, unet, latent_channels)
    return Experiment(
        name=folder.resolve().name,
        data=DataConfig(image_size=_image_size(unet, autoencoder), image_channels=channels, cache_latents=False),
        first_stage=FirstStageConfig(autoencoder=autoencoder.config),
        conditioning=conditioning,
        given=imported_given(conditioning, denoiser, autoencoder.config),
        denoiser=denoiser,
        diffusion=DiffusionConfig(
            schedule=schedule,
            prediction_type=scheduler.prediction_type,
            cond_drop_prob=0.1 if pipeline.text != "none" else 0.0,
        ),
        sampling=sampling,
    )


def _denoiser(folder: Path, unet: DiffusersUNet, latent_channels: int) -> UNetConfig:
    if unet.in_channels < latent_channels:
        raise UserError(f"{folder}: the U-Net takes {unet.in_channels} channels, but latents have {latent_channels}")
    return dataclasses.replace(unet.config, concat_channels=unet.in_channels - latent_channels)


def _image_size(unet: DiffusersUNet, autoencoder: DiffusersAutoencoder) -> int:
    """Side of the pictures: that of the latents the U-Net was trained at, or of the autoencoder's pictures."""
    levels = len(unet.config.channel_mult)
    if unet.sample_size is None:
        return picture_size(autoencoder.sample_size, autoencoder, levels)
    latent = max(unet.sample_size) if isinstance(unet.sample_size, tuple) else unet.sample_size
    return picture_size(latent * autoencoder.config.downsample_factor, autoencoder, levels)
