"""A latent diffusion model of the original code, as its project file describes it, in our configurations."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ldm_jax.config import (
    ClassConditioning,
    Conditioning,
    DataConfig,
    DiffusionConfig,
    EmbeddingConditioning,
    Experiment,
    FirstStageConfig,
    SamplingConfig,
    SpatialConditioning,
    Unconditional,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.original_autoencoder import OriginalAutoencoder
from ldm_jax.interop.original_unet import OriginalUNet
from ldm_jax.interop.original_unet_export import describe_unet
from ldm_jax.interop.original_unet_options import Library
from ldm_jax.model import Params


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
        unguided = isinstance(self.conditioning, Unconditional) or not getattr(self.conditioning, "null_class", True)
        return Experiment(
            name=name,
            data=DataConfig(image_size=self.image_size, image_channels=3 if self._is_rgb() else 1),
            first_stage=FirstStageConfig(autoencoder=self.autoencoder.config),
            conditioning=self.conditioning,
            denoiser=self.unet.config,
            diffusion=self.diffusion,
            sampling=SamplingConfig(
                num_sample_steps=min(50, self.diffusion.schedule.num_train_timesteps),
                guidance_scale=1.0 if unguided else 5.0,
            ),
        )

    def _is_rgb(self) -> bool:
        channels = self.autoencoder.image_channels
        if channels not in (1, 3):
            raise UserError(f"the first stage has in_channels={channels}; pictures here have 1 or 3")
        return channels == 3


def describe_project(experiment: Experiment, params: Params) -> OriginalProject:
    """A model of ours as a project of the original code.

    Raises:
        UserError: its latents are scaled channel by channel, which the original code cannot express.
    """
    conditioning, autoencoder = experiment.conditioning, experiment.first_stage.autoencoder
    sdxl = not isinstance(conditioning, ClassConditioning | SpatialConditioning | EmbeddingConditioning | Unconditional)
    return OriginalProject(
        unet=describe_unet(experiment.denoiser, params["denoiser"]),
        autoencoder=OriginalAutoencoder(
            config=autoencoder, image_channels=experiment.data.image_channels, resolution=experiment.data.image_size
        ),
        conditioning=conditioning,
        diffusion=replace(experiment.diffusion, cond_drop_prob=0.0),
        scale_factor=scale_factor_of(params["latent"]),
        image_size=experiment.data.image_size,
        library="sgm" if sdxl and experiment.denoiser.vector_dim is not None else "ldm",
        use_ema=False,
        first_stage_conditions=isinstance(conditioning, Unconditional) and experiment.denoiser.concat_channels > 0,
    )


def latent_params(scale_factor: float, channels: int) -> Params:
    """Latent statistics with the spread that a scale factor undoes."""
    return {"mean": np.zeros(channels, np.float32), "std": np.full(channels, 1.0 / scale_factor, np.float32)}


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
    exact = 1.0 / float(std[0])
    rounded = (float(f"{exact:.{digits}g}") for digits in range(1, 18))
    return next(factor for factor in rounded if np.float32(1.0 / factor) == std[0])
