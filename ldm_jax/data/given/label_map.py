"""Semantic synthesis: the class of each pixel, one-hot."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm_jax.config import Experiment, SpatialConditioning
from ldm_jax.data.given.files import read_bytes, refuse_alpha
from ldm_jax.data.given.given import Arrays, Part
from ldm_jax.data.given.make import Load
from ldm_jax.data.source import Example
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place


def make(experiment: Experiment, object_names: tuple[str, ...], load: Load) -> "GivenLabelMap":
    """For the labels of an experiment's data.

    Raises:
        UserError: the data have none, or the model takes another number of them.
    """
    del load
    conditioning = experiment.conditioning
    assert isinstance(conditioning, SpatialConditioning)
    if not object_names:
        raise UserError(
            f"the data set {type(experiment.data.source).__name__} has no label maps, which given=LabelMap needs; use "
            "OpenMojiScenes"
        )
    if conditioning.in_channels != 1 + len(object_names):
        raise UserError(
            f"conditioning.in_channels={conditioning.in_channels} is not the background and the {len(object_names)} "
            f"labels of the data; use {1 + len(object_names)}"
        )
    side = experiment.data.image_size
    return GivenLabelMap(("background", *object_names), (side, side))


@dataclass(frozen=True)
class GivenLabelMap:
    """`map` [h, w, classes] of 0 and 1."""

    is_map: ClassVar[bool] = True

    names: tuple[str, ...]
    size: tuple[int, int]
    """Height and width of the map."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The label map."""
        listing = ", ".join(f"{i} {name}" for i, name in enumerate(self.names))
        size = f"{self.size[1]} x {self.size[0]} pixels"
        return (Part("labels", f"the label map, {size} in grey or with a palette, of the values {listing}"),)

    def at(self, size: tuple[int, int]) -> "GivenLabelMap":
        """The same for pictures of another size."""
        return replace(self, size=size)

    def of_example(self, example: Example, rng: np.random.Generator) -> Arrays:
        """The example's label map."""
        del rng
        if "label_map" not in example:
            raise UserError("the data have no label maps, which given=LabelMap needs; use OpenMojiScenes")
        return self._one_hot(example["label_map"][..., 0])

    def of_files(self, files: Mapping[str, Place]) -> Arrays:
        """A label map whose pixels are numbers of classes.

        Raises:
            UserError: it cannot be read, is in colours, of another size, or holds other numbers.
        """
        path, (part,) = files["labels"], self.parts
        data = read_bytes(path, part.what)
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "GIF", "BMP", "TIFF")) as picture:
                mode, labels = picture.mode, np.asarray(picture)
        except Exception as error:  # a decoder fed with damaged bytes raises anything
            raise UserError(f"{path} cannot be read as a label map ({error}); give {part.what}") from None
        refuse_alpha(data, path, "the label map")
        if mode not in ("L", "P"):
            raise UserError(f"{path} has mode {mode}, and its pixels are no numbers of classes; give {part.what}")
        if labels.shape != self.size:
            raise UserError(f"{path} has {labels.shape[1]} x {labels.shape[0]} pixels; give {part.what}")
        if labels.max() >= len(self.names):
            y, x = np.argwhere(labels >= len(self.names))[0]
            raise UserError(f"{path} has the unknown label {labels[y, x]} at x={x}, y={y}; give {part.what}")
        return self._one_hot(labels)

    def shown(self, arrays: Arrays) -> UInt8[np.ndarray, "h w 3"]:
        """A colour for each class, the background white."""
        return palette(len(self.names))[np.argmax(arrays["map"], axis=-1)]

    def _one_hot(self, labels: UInt8[np.ndarray, "h w"]) -> Arrays:
        return {"map": np.eye(len(self.names), dtype=np.float32)[labels]}


def palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    """White, and colours that lie as far from each other as their hues allow."""
    hues = Image.new("HSV", (max(count - 1, 1), 1))
    hues.putdata([(round(255 * i / max(count - 1, 1)), 190, 220 - 60 * (i % 2)) for i in range(max(count - 1, 1))])
    colours = np.asarray(hues.convert("RGB"))[0]
    return np.concatenate([np.full((1, 3), 255, np.uint8), colours])[:count]
