"""A latent diffusion model of the original code, as its project file describes it, in our configurations."""

import logging
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.config import (
    ClassConditioning,
    ClipTextConditioning,
    Conditioning,
    DataConfig,
    DiffusionConfig,
    EmbeddingConditioning,
    Experiment,
    FirstStageConfig,
    SamplingConfig,
    SdxlConditioning,
    SpatialConditioning,
    TextConditioning,
    Unconditional,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.given import imported_given
from ldm_jax.interop.latents import scale_factor
from ldm_jax.interop.original.autoencoder import OriginalAutoencoder
from ldm_jax.interop.original.clip_options import FindModel, find_none
from ldm_jax.interop.original.unet import OriginalUNet
from ldm_jax.interop.original.unet_export import describe_unet
from ldm_jax.interop.original.unet_options import Library
from ldm_jax.model import Params

logger = logging.getLogger(__name__)


class Unsaid(NamedTuple):
    """What a project file leaves open."""

    image_size: int | None = None
    """Height and width of pictures in pixels, where the file's are not wanted or missing (sgm)."""
    null_class: bool | None = None
    """Whether the last class of a class table stands for none; None decides by its size."""
    find_model: FindModel = find_none
    """Where a CLIP is found whose `version` is not the name of a published one."""


@dataclass(frozen=True, kw_only=True)
class OriginalProject:
    """What `LatentDiffusion` of ldm or `DiffusionEngine` of sgm is made of."""

    unet: OriginalUNet
    autoencoder: OriginalAutoencoder
    conditioning: Conditioning
    diffusion: DiffusionConfig
    scale_factor: float = 1.0
    """Latents are multiplied by this; a file that holds a factor of its own overrides it."""
    image_size: int
    """Height and width of pictures in pixels."""
    library: Library = "ldm"
    use_ema: bool = True
    """Whether samples are drawn with the moving averages of the parameters."""
    first_stage_conditions: bool = False
    """Whether the first stage is the conditioning stage too (`__is_first_stage__`)."""
    other_stages: tuple[str, ...] = ()
    """Names of modules that make conditions outside of the model, whose tensors are left out."""

    @property
    def has_labels_only(self) -> bool:
        """Whether classes reach the U-Net as labels alone, so that the original has no table of tokens for them."""
        return isinstance(self.conditioning, ClassConditioning) and self.unet.context_dim is None

    def experiment(self, name: str = "original") -> Experiment:
        """The experiment with this model.

        Raises:
            UserError: its parts do not fit together here.
        """
        return Experiment(
            name=name,
            data=DataConfig(
                image_size=self.image_size, image_channels=self.autoencoder.picture_channels, cache_latents=False
            ),
            first_stage=FirstStageConfig(autoencoder=self.autoencoder.config),
            conditioning=self.conditioning,
            given=imported_given(self.conditioning, self.unet.config, self.autoencoder.config),
            denoiser=self.unet.config,
            diffusion=self.diffusion,
            sampling=SamplingConfig(
                num_sample_steps=min(50, self.diffusion.schedule.num_train_timesteps),
                guidance_scale=5.0 if self._can_be_guided() else 1.0,
            ),
        )

    def _can_be_guided(self) -> bool:
        """Whether there is an input that stands for no condition, known from training."""
        match self.conditioning:
            case ClassConditioning(null_class=null_class):
                return null_class
            case TextConditioning() | ClipTextConditioning() | SdxlConditioning():
                return True
            case _:
                return False


def describe_project(experiment: Experiment, params: Params) -> OriginalProject:
    """A model of ours as a project of the original code.

    Raises:
        UserError: its latents are scaled channel by channel, which the original code cannot express.
    """
    conditioning = experiment.conditioning
    sdxl = not isinstance(conditioning, ClassConditioning | SpatialConditioning | EmbeddingConditioning | Unconditional)
    return OriginalProject(
        unet=describe_unet(experiment.denoiser, params["denoiser"]),
        autoencoder=describe_autoencoder(experiment),
        conditioning=conditioning,
        diffusion=_as_drawn(experiment.diffusion),
        scale_factor=scale_factor_of(params["latent"]),
        image_size=experiment.data.image_size,
        library="sgm" if sdxl and experiment.denoiser.vector_dim is not None else "ldm",
        use_ema=False,
        first_stage_conditions=isinstance(conditioning, Unconditional) and experiment.denoiser.concat_channels > 0,
    )


def describe_autoencoder(experiment: Experiment) -> OriginalAutoencoder:
    """The first stage of a model of ours as the original code has it."""
    data = experiment.data
    return OriginalAutoencoder(
        config=experiment.first_stage.autoencoder, image_channels=data.image_channels, resolution=data.image_size
    )


def _as_drawn(diffusion: DiffusionConfig) -> DiffusionConfig:
    """The configuration without those choices of training that the original code has not: pictures stay the same."""
    loss = "l2" if diffusion.loss == "huber" else diffusion.loss
    if loss != diffusion.loss or diffusion.weighting != "uniform":
        logger.warning(
            "the original code would train on with loss=%s and weighting=uniform, not with loss=%s and weighting=%s",
            *(loss, diffusion.loss, diffusion.weighting),
        )
    return replace(diffusion, cond_drop_prob=0.0, loss=loss, weighting="uniform")


def scale_factor_of(latent: dict[str, Any]) -> float:
    """The scale factor of latent statistics, with no more digits than give the same spread again.

    Raises:
        UserError: the channels differ, or their mean is not 0.
    """
    mean, std = np.asarray(latent["mean"]), np.asarray(latent["std"])
    if np.any(mean != 0) or np.any(std != std[0]):
        raise UserError(
            "the original code scales all channels of a latent by one factor; this model has "
            f"latent.mean={mean.tolist()} and latent.std={std.tolist()}: train with latent_scale=global"
        )
    return scale_factor(float(std[0]))
