"""First stages alone: autoencoders as sessions without a denoiser, and the folders in which diffusers keeps them."""

from pathlib import Path

from ldm_jax import sharding
from ldm_jax.config import (
    AutoencoderKLConfig,
    AutoencoderVQConfig,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    UNetConfig,
)
from ldm_jax.errors import UserError
from ldm_jax.files.folders import require_empty
from ldm_jax.files.json_files import read_json
from ldm_jax.files.write_safetensors import FloatType
from ldm_jax.interop.diffusers.autoencoder import (
    autoencoder_slot,
    describe_autoencoder,
    picture_size,
    read_autoencoder_config,
    read_autoencoder_params,
    require_same_channels,
    write_autoencoder_config,
)
from ldm_jax.interop.diffusers.component import read_config, read_weights, write_component
from ldm_jax.interop.latents import latent_params
from ldm_jax.interop.mapping import write_tensors
from ldm_jax.model import Params, make_model
from ldm_jax.sampling.session import Session

_CLASSES = ("AutoencoderKL", "VQModel")


def first_stage_session(
    name: str,
    autoencoder: AutoencoderKLConfig | AutoencoderVQConfig,
    *,
    image_size: int,
    image_channels: int,
    params: Params,
    latent: Params,
) -> Session:
    """A session of an autoencoder alone; its experiment has a small denoiser that nobody has trained.

    Args:
        name: of the experiment.
        autoencoder: the configuration.
        image_size: height and width of pictures in pixels.
        image_channels: channels of pictures.
        params: the autoencoder's parameters.
        latent: mean and spread of each channel of the latents.

    Raises:
        UserError: pictures are neither grey nor RGB.
    """
    if image_channels not in (1, 3):
        raise UserError(f"{name}: the first stage takes {image_channels} channels; pictures here have 1 or 3")
    experiment = Experiment(
        name=name,
        data=DataConfig(image_size=image_size, image_channels=image_channels, cache_latents=False),
        first_stage=FirstStageConfig(autoencoder=autoencoder),
        denoiser=UNetConfig(channel_mult=(1,), attention_levels=(0,), spatial_dims=autoencoder.spatial_dims),
        diffusion=DiffusionConfig(cond_drop_prob=0.0),
    )
    model = make_model(experiment, sharding.make_mesh(experiment.mesh))
    return Session(experiment, model, {"autoencoder": params, "latent": latent})


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder is an autoencoder of diffusers."""
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("_class_name") in _CLASSES


def read_autoencoder(folder: Path, variant: str | None = None) -> Session:
    """The first stage in the folder of an AutoencoderKL or a VQModel; `variant` is that of its weights, such as "fp16".

    Raises:
        UserError: an option is not supported, a file is missing or damaged, weights do not fit.
    """
    record = read_autoencoder_config(*read_config(folder))
    require_same_channels(record, folder)
    return first_stage_session(
        folder.resolve().name,
        record.config,
        image_size=picture_size(record.sample_size, record),
        image_channels=record.in_channels,
        params=read_weights(folder, read_autoencoder_params, record, variant=variant),
        latent=latent_params(record.latent_mean, record.latent_std, record.config.latent_channels),
    )


def write_autoencoder(session: Session, folder: Path, dtype: FloatType | None = None) -> None:
    """Write a first stage as the folder of an AutoencoderKL or a VQModel; numbers in `dtype`, None keeps float32.

    Raises:
        UserError: diffusers has no such autoencoder, or the folder cannot be written or is not empty.
    """
    require_empty(folder)
    record = describe_autoencoder(session.experiment, session.params["latent"])
    config, tensors = (
        write_autoencoder_config(record),
        write_tensors(session.params["autoencoder"], autoencoder_slot(record)),
    )
    try:
        write_component(folder, config, tensors, dtype=dtype)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error}); choose another folder") from error
