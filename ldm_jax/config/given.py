"""What a model is given of a picture beside caption and class: a small or masked picture, labels, boxes, neighbours.

A new kind is a class here and a file in `data/given/`, named in the two tables at their ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ldm_jax.config.checks import require, require_fraction, require_positive
from ldm_jax.config.conditioning import EmbeddingConditioning, SpatialConditioning, TextConditioning

MaskKind: TypeAlias = Literal["boxes", "brush", "wide", "margins"]
MaskedOrder: TypeAlias = Literal["ldm", "sd"]


@dataclass(frozen=True, kw_only=True)
class LowResolution:
    """A smaller picture to enlarge (super-resolution): concatenated to the latent, whose size it has to have."""

    factor: int = 4
    """How many times smaller its sides are."""
    degradation: Literal["bsrgan_light", "bicubic"] = "bsrgan_light"
    """How it is made in training: blurred, resampled, with noise and JPEG's traces in random order (Zhang et al. 2021),
    or bicubic alone."""

    def __post_init__(self) -> None:
        require_positive(self, "factor")

    def check(self, experiment: Any) -> None:
        """Refuse an experiment whose model does not take it."""
        size, channels = experiment.data.image_size, experiment.data.image_channels
        conditioning = _the_conditioning(self, experiment, SpatialConditioning)
        require(size % self.factor == 0, f"given.factor={self.factor} does not divide data.image_size={size}")
        found, wanted = _map_side(experiment), size // self.factor
        require(
            found == wanted,
            f"given.factor={self.factor} makes pictures of {wanted} pixels, and the model takes maps of {found} (its "
            "latents, doubled conditioning.num_stages times); use a factor that fits the autoencoder",
        )
        require(
            conditioning.in_channels == channels,
            f"conditioning.in_channels={conditioning.in_channels} is not data.image_channels={channels}",
        )


@dataclass(frozen=True, kw_only=True)
class MaskedPicture:
    """A picture with holes to fill (inpainting): its latents and the mask are concatenated to the noisy latent."""

    order: MaskedOrder = "ldm"
    """`ldm`: latents, then the mask as -1 and 1, holes black (LDM's 7 channels); `sd`: the mask as 0 and 1, then
    latents, holes grey (Stable Diffusion's 9)."""
    masks: tuple[MaskKind, ...] = ("boxes", "brush", "wide", "margins")
    """Kinds of random masks in training: rectangles, thin strokes, wide strokes, and the margins of outpainting."""
    max_share: float = 0.7
    """Largest share of a picture that random masks cover."""

    def __post_init__(self) -> None:
        require_fraction(self, "max_share")
        require(self.max_share >= 0.1, f"MaskedPicture.max_share={self.max_share} must be at least 0.1")
        require(len(self.masks) > 0, "MaskedPicture.masks is empty; give boxes, brush, wide or margins")

    @property
    def hole(self) -> float:
        """What is in the holes: black, or grey."""
        return -1.0 if self.order == "ldm" else 0.0

    def check(self, experiment: Any) -> None:
        """Refuse an experiment whose model does not take it."""
        found, wanted = experiment.denoiser.concat_channels, experiment.first_stage.autoencoder.latent_channels + 1
        require(
            found == wanted,
            f"denoiser.concat_channels={found} does not fit given=MaskedPicture, whose latents and mask have {wanted} "
            f"channels; use {wanted}",
        )
        require(
            not isinstance(experiment.conditioning, SpatialConditioning),
            "given=MaskedPicture takes the place of conditioning=SpatialConditioning; use another conditioning, or "
            "Unconditional",
        )


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """The class of each pixel (semantic synthesis): one-hot, brought to the latent's size and concatenated."""

    def check(self, experiment: Any) -> None:
        """Refuse an experiment whose model does not take it."""
        conditioning = _the_conditioning(self, experiment, SpatialConditioning)
        found, wanted = _map_side(experiment), experiment.data.image_size
        require(
            found == wanted,
            f"conditioning.num_stages={conditioning.num_stages} takes maps of {found} pixels, and label maps have the "
            f"{wanted} of their pictures; halve the map as often as the autoencoder halves the picture",
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Objects with their boxes (layout-to-image), as tokens of the text transformer."""

    def check(self, experiment: Any) -> None:
        """Refuse an experiment whose model does not take it."""
        conditioning = _the_conditioning(self, experiment, TextConditioning)
        require(
            conditioning.tokens == "boxes",
            f"given=Layout needs conditioning.tokens=boxes, not {conditioning.tokens}",
        )
        length = conditioning.context_length
        require(
            length % 3 != 1,
            f"conditioning.context_length={length} is not three tokens for each object (and two for the picture); "
            f"nearest usable: {length - 1} and {length + 1}",
        )
        require(
            conditioning.vocab_size > 4,
            f"conditioning.vocab_size={conditioning.vocab_size} has no grid of corners; use 257 for one of 16 lines",
        )


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Embeddings of the training pictures that look most alike (retrieval-augmented generation), as context tokens."""

    database: int = 20_000
    """Most pictures of the training split among which neighbours are sought, spread over it evenly."""

    def __post_init__(self) -> None:
        require_positive(self, "database")

    def check(self, experiment: Any) -> None:
        """Refuse an experiment whose model does not take it."""
        _the_conditioning(self, experiment, EmbeddingConditioning)


Given: TypeAlias = LowResolution | MaskedPicture | LabelMap | Layout | Neighbours


def _the_conditioning(given: Any, experiment: Any, kind: type) -> Any:
    found = experiment.conditioning
    require(
        isinstance(found, kind),
        f"given={type(given).__name__} needs conditioning={kind.__name__}, not {type(found).__name__}",
    )
    return found


def _map_side(experiment: Any) -> int:
    """Side of the maps that a spatial conditioner takes."""
    latent = experiment.data.image_size // experiment.first_stage.autoencoder.downsample_factor
    return latent * 2**experiment.conditioning.num_stages
