"""Inpainting: a picture whose holes are painted over, and the mask of the holes; the model encodes the picture."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ldm_jax.config import Experiment, MaskedPicture
from ldm_jax.data.given.files import read_exact, to_float, to_rgb
from ldm_jax.data.given.given import Arrays, Part
from ldm_jax.data.given.make import Load
from ldm_jax.data.given.masks import random_mask
from ldm_jax.data.source import Example
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place


def make(experiment: Experiment, object_names: tuple[str, ...], load: Load) -> "GivenMaskedPicture":
    """For the pictures of an experiment."""
    del object_names, load
    assert isinstance(experiment.given, MaskedPicture)
    side = experiment.data.image_size
    return GivenMaskedPicture(experiment.given, (side, side), experiment.data.image_channels)


@dataclass(frozen=True)
class GivenMaskedPicture:
    """`masked` [h, w, c] in [-1, 1], and `mask` [h, w, 1]: 1 in the holes, 0 elsewhere."""

    is_map: ClassVar[bool] = True

    config: MaskedPicture
    size: tuple[int, int]
    """Height and width of the picture."""
    channels: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """The picture and its mask."""
        size = f"{self.size[1]} x {self.size[0]} pixels"
        return (Part("picture", f"the picture, {size}"), Part("mask", f"the mask, {size}, white in the holes"))

    def at(self, size: tuple[int, int]) -> "GivenMaskedPicture":
        """The same for pictures of another size."""
        return replace(self, size=size)

    def of_example(self, example: Example, rng: np.random.Generator) -> Arrays:
        """The example's picture with random holes."""
        holes = random_mask(self.config.masks, self.size[0], self.config.max_share, rng)
        return self.masked(example["image"], holes)

    def of_files(self, files: Mapping[str, Place]) -> Arrays:
        """A picture and a mask of its size.

        Raises:
            UserError: one of them cannot be read, is transparent or of another size, or the mask has no hole.
        """
        picture, mask = self.parts
        image = to_float(read_exact(files["picture"], picture.what, self.size, self.channels))
        holes = read_exact(files["mask"], mask.what, self.size, 1)[..., 0] >= 128
        if not holes.any():
            raise UserError(f"{files['mask']} has no white pixel: there is nothing to fill in; paint the holes white")
        return self.masked(image, holes)

    def shown(self, arrays: Arrays) -> UInt8[np.ndarray, "h w 3"]:
        """The picture with grey holes."""
        return to_rgb(np.where(arrays["mask"] > 0.5, np.float32(0.0), arrays["masked"]))

    def masked(self, image: Float[np.ndarray, "h w c"], holes: Bool[np.ndarray, "h w"]) -> Arrays:
        """The inputs of a picture in [-1, 1] and its holes, of any size."""
        mask = holes[..., None].astype(np.float32)
        masked = np.where(mask > 0.5, np.float32(self.config.hole), image).astype(np.float32)
        return {"masked": masked, "mask": mask}
