"""The discriminator that a first stage is trained against."""

from dataclasses import dataclass, field
from typing import Literal

from ldm_jax.config.checks import require, require_fraction, require_layers, require_not_negative, require_positive
from ldm_jax.config.training import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """A PatchGAN that tells pictures from reconstructions, patch by patch, and how the autoencoder listens to it."""

    base_channels: int = 64
    """Channels of the first layer; they double up to eight times that."""
    num_layers: int = 3
    """Layers that halve the resolution; each doubles the width of the patch that is judged (3: 70 pixels)."""
    norm: Literal["batch", "group", "spectral", "none"] = "batch"
    """Normalisation between layers: over the global batch as in LDM (with gradient accumulation the micro-batch), over
    groups of channels of one picture, of the weights by their largest singular value, or none."""
    loss: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    """How verdicts are counted; `vanilla` is LDM's: cross-entropy for the discriminator, the mean verdict for the
    autoencoder."""
    start_step: int = 50001
    """Step from which the discriminator learns."""
    warmup_steps: int = 0
    """Steps for which it learns before the autoencoder hears it."""
    ramp_steps: int = 0
    """Steps over which its weight then rises from nothing."""
    weight: float = 0.5
    """Weight of its verdict, beside the adaptive one; 0 has no discriminator."""
    adaptive: bool = True
    """Weigh its verdict so that its gradient at the decoder's last layer is as large as the reconstruction's."""
    max_adaptive_weight: float = 1e4
    """Cap of the adaptive weight, which without one is 1e4 times the norm of the error's gradient at most."""
    r1_weight: float = 0.0
    """Weight of the squared gradient at real pictures (R1 penalty); 0 has none."""
    lecam_weight: float = 0.0
    """Weight of the LeCam regulariser, which holds verdicts near their moving averages; 0 has none."""
    lecam_decay: float = 0.99
    """Decay of those averages."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(beta1=0.5, beta2=0.9, weight_decay=0.0))
    """The discriminator's own."""

    def __post_init__(self) -> None:
        require_positive(self, "base_channels", "max_adaptive_weight")
        require_layers("DiscriminatorConfig.num_layers", self.num_layers)
        require_not_negative(self, "start_step", "warmup_steps", "ramp_steps", "weight", "r1_weight", "lecam_weight")
        require_fraction(self, "lecam_decay")

    def check_image_size(self, image_size: int) -> None:
        """Refuse more layers than a picture has room for; raises UserError with the most that fit."""

        def verdicts(layers: int) -> int:
            return image_size // 2**layers - 2

        most = max((n for n in range(1, self.num_layers) if verdicts(n) >= 1), default=0)
        require(
            verdicts(self.num_layers) >= 1,
            f"first_stage.discriminator.num_layers={self.num_layers} leaves nothing of pictures of "
            f"data.image_size={image_size}; " + (f"use at most {most}" if most else "use larger pictures"),
        )
