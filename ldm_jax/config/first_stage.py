"""The first stage: the autoencoder, what its reconstructions are measured by, and its training."""

from dataclasses import dataclass, field
from typing import Literal

from ldm_jax.config.adversarial import DiscriminatorConfig
from ldm_jax.config.autoencoder import AutoencoderKLConfig, AutoencoderVQConfig
from ldm_jax.config.perceptual import PerceptualConfig
from ldm_jax.config.training import OptimizerConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """The autoencoder and its training."""

    autoencoder: AutoencoderKLConfig | AutoencoderVQConfig = field(default_factory=AutoencoderKLConfig)
    reconstruction_loss: Literal["l1", "l2"] = "l1"
    """Distance between a picture and its reconstruction, pixel by pixel."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    learn_output_logvar: bool = False
    """Learn one log-variance of the reconstruction's error, which weighs that error against the regulariser."""
    discriminator: DiscriminatorConfig | None = None
    """What the reconstructions are trained against; None, or one whose weight is 0, trains on distances alone."""
    latent_scale: Literal["global", "per_channel"] = "global"
    """How latents are brought to unit spread: one factor for all (LDM), or mean and spread of each channel."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: str | None = None
    """Folder of a finished run whose autoencoder is used instead of training one."""

    @property
    def judge(self) -> DiscriminatorConfig | None:
        """The discriminator, if its verdict has a weight."""
        return self.discriminator if self.discriminator is not None and self.discriminator.weight > 0 else None

    @property
    def averaged_codebook(self) -> AutoencoderVQConfig | None:
        """The autoencoder, if its codes follow by moving averages."""
        config = self.autoencoder
        return config if isinstance(config, AutoencoderVQConfig) and config.codes == "average" else None
