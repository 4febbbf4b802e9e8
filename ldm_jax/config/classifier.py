"""A classifier of noisy latents, by whose gradient drawing is guided (LDM's; Dhariwal and Nichol 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_jax.config.checks import require, require_positive
from ldm_jax.config.denoiser import UNetConfig


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The way down of a U-Net, then the mean over space and a dense layer."""

    num_classes: int = 10
    """Number of classes."""
    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            base_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), attention="self"
        )
    )
    """Its way down and its middle; the rest of it is not used."""

    def __post_init__(self) -> None:
        require_positive(self, "num_classes")
        require(
            self.network.attention == "self",
            f"classifier.network.attention={self.network.attention} looks at a context, and a classifier has none; use "
            "self",
        )
