"""One experiment: every other configuration, and how they fit together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ldm_jax.config.checks import HOW, require, require_not_negative, require_positive
from ldm_jax.config.classifier import ClassifierConfig
from ldm_jax.config.compute import AttentionChoice
from ldm_jax.config.conditioning import (
    ClassConditioning,
    ClipTextConditioning,
    Conditioning,
    SdxlConditioning,
    SpatialConditioning,
    Unconditional,
)
from ldm_jax.config.data import DataConfig
from ldm_jax.config.denoiser import UNetConfig
from ldm_jax.config.diffusion import DiffusionConfig
from ldm_jax.config.first_stage import FirstStageConfig
from ldm_jax.config.given import Given
from ldm_jax.config.mesh import MeshConfig
from ldm_jax.config.sampling import SamplingConfig
from ldm_jax.config.scoring import ScoringConfig
from ldm_jax.config.training import OptimizerConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: data, first stage (autoencoder), second stage (latent diffusion), and how it is sampled."""

    name: str = "unnamed"
    """Name of the experiment; the default run folder is runs/NAME."""
    start: str | None = field(default=None, metadata=HOW)
    """Model whose weights training starts from: a run, or a model of another system as `ldm convert` reads it; its
    autoencoder is used as it is."""
    seed: int = 0
    """Root of everything random."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and matrix products; parameters, statistics and losses stay in float32."""
    attention_kernel: AttentionChoice = field(default="auto", metadata=HOW)
    """How attention is computed: `reference` keeps all its weights, `blocked` a few queries at a time, `flash` is a
    kernel for TPUs, `cudnn` for NVIDIA GPUs; `auto` takes the kernel of the devices, on a CPU the reference."""
    strip_rows: int | None = field(default=None, metadata=HOW)
    """Rows of a feature map that the autoencoder computes at a time where it is not trained, for large pictures: the
    same values up to rounding, in a third of the memory for decoding; 32 are few. None computes all of them."""
    data: DataConfig = field(default_factory=DataConfig)
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    conditioning: Conditioning = field(default_factory=Unconditional)
    given: Given | None = None
    """What the model is given of a picture beside caption and class, by the data and by `ldm sample`."""
    denoiser: UNetConfig = field(default_factory=UNetConfig)
    classifier: ClassifierConfig | None = None
    """A classifier of noisy latents, which is trained in place of the denoiser, to guide another run."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig, metadata=HOW)
    mesh: MeshConfig = field(default_factory=MeshConfig, metadata=HOW)

    def __post_init__(self) -> None:
        require(self.name.strip() != "", "Experiment.name is empty; its run folder is called after it")
        require_not_negative(self, "seed")
        autoencoder, size = self.first_stage.autoencoder, self.data.image_size
        factor = autoencoder.downsample_factor * 2 ** (len(self.denoiser.channel_mult) - 1)
        below = max(size // factor, 1) * factor
        require(
            size % factor == 0,
            f"data.image_size={size} is not divisible by {factor} (the autoencoder's downsample_factor="
            f"{autoencoder.downsample_factor} times 2 for each further level of the denoiser); "
            f"nearest usable: {below} and {below + factor}",
        )
        require(
            autoencoder.spatial_dims == self.denoiser.spatial_dims,
            f"denoiser.spatial_dims={self.denoiser.spatial_dims} is not that of the autoencoder, whose latents it "
            f"denoises: use {autoencoder.spatial_dims}",
        )
        steps, timesteps = self.sampling.num_sample_steps, self.diffusion.schedule.num_train_timesteps
        require(
            steps <= timesteps,
            f"sampling.num_sample_steps={steps} is more than diffusion.schedule.num_train_timesteps={timesteps}; "
            f"use at most {timesteps}",
        )
        require(
            self.data.latents is None or self.start is not None or self.first_stage.run is not None,
            f"data.latents={self.data.latents} are of an autoencoder that is there already: name its run, "
            "first_stage.run=RUN, or the model that it belongs to, start=MODEL",
        )
        if self.strip_rows is not None:
            require_positive(self, "strip_rows")
            require(
                autoencoder.spatial_dims == 2,
                f"Experiment.strip_rows={self.strip_rows} is for pictures, and the autoencoder has spatial_dims="
                f"{autoencoder.spatial_dims}; use None",
            )
        self.first_stage.perceptual.check_picture(size, autoencoder.spatial_dims)
        if self.first_stage.judge is not None:
            self.first_stage.judge.check_image_size(size)
        self._check_conditioning()

    @property
    def tells_sizes(self) -> bool:
        """Whether the denoiser is told how pictures were cut."""
        return isinstance(self.conditioning, SdxlConditioning)

    @property
    def second_stage(self) -> str:
        """The stage behind the autoencoder."""
        return "diffusion" if self.classifier is None else "classifier"

    def _check_conditioning(self) -> None:
        conditioning, denoiser = self.conditioning, self.denoiser
        kind = type(conditioning).__name__
        if denoiser.num_classes is not None:
            entries = conditioning.num_entries if isinstance(conditioning, ClassConditioning) else denoiser.num_classes
            require(
                isinstance(conditioning, ClassConditioning | ClipTextConditioning),
                f"denoiser.num_classes={denoiser.num_classes} needs class conditioning, not {kind}; set it to None",
            )
            require(
                denoiser.num_classes == entries,
                f"denoiser.num_classes={denoiser.num_classes} is not the number of entries of the class conditioning "
                f"(its classes, and `no class`); use {entries}",
            )
        require(
            denoiser.attention == "transformer"
            or denoiser.num_classes is not None
            or isinstance(conditioning, Unconditional | SpatialConditioning),
            f"denoiser.attention={denoiser.attention} cannot see the context of conditioning={kind}; use "
            "denoiser.attention=transformer",
        )
        for name, given in (("concat_channels", 0), ("vector_dim", None)):
            wanted = getattr(conditioning, name, getattr(denoiser, name) if name == "concat_channels" else given)
            require(
                getattr(denoiser, name) == wanted,
                f"denoiser.{name}={getattr(denoiser, name)} does not fit conditioning={kind}; use {wanted}",
            )
        require(
            getattr(conditioning, "null_class", True) or self.diffusion.cond_drop_prob == 0,
            f"diffusion.cond_drop_prob={self.diffusion.cond_drop_prob} needs conditioning.null_class=True: without an "
            "entry for `no class` there is nothing to put in its place; use 0",
        )
        if self.given is not None:
            self.given.check(self)
            require(
                self.data.crop == "center" or not (self.data.cache_latents or self.data.latents),
                "data.crop=random cuts what is given anew in each step, and latents that are encoded once are of one "
                "square: use --data.no-cache-latents without --data.latents, or data.crop=center",
            )
