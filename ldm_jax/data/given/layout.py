"""Layout-to-image: objects with their boxes as tokens, three for each.

(1) label, corner of the top left, corner of the bottom right; a corner is round(y (n - 1)) n + round(x (n - 1)) on a
    grid of n = floor(sqrt(vocab_size - 1)) lines
(2) no object: three times the last token, vocab_size - 1
(3) where two tokens are left (92 = 30 x 3 + 2), they are the corners of what the picture shows of its scene: all of it

Esser et al. 2021, arXiv:2012.09841 (taming-transformers, the builder of bounding boxes), from which LDM has it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8
from PIL import Image, ImageDraw

from ldm_jax.config import Experiment, TextConditioning
from ldm_jax.data.given.files import read_bytes
from ldm_jax.data.given.given import Arrays, Part
from ldm_jax.data.given.label_map import palette
from ldm_jax.data.given.make import Load
from ldm_jax.data.source import Example
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place

logger = logging.getLogger(__name__)

_SIDES = ("left", "top", "right", "bottom")
_FORM = '[{"label": "food-drink", "left": 0.1, "top": 0.2, "right": 0.5, "bottom": 0.6}, ...]'


def make(experiment: Experiment, object_names: tuple[str, ...], load: Load) -> "GivenLayout":
    """For the objects of an experiment's data.

    Raises:
        UserError: the data have none, or more labels than the model has tokens.
    """
    del load
    conditioning = experiment.conditioning
    assert isinstance(conditioning, TextConditioning)
    if not object_names:
        raise UserError(
            f"the data set {type(experiment.data.source).__name__} has no boxes of objects, which given=Layout needs; "
            "use OpenMojiScenes, or a prepared set of detection"
        )
    if len(object_names) >= conditioning.vocab_size:
        raise UserError(
            f"conditioning.vocab_size={conditioning.vocab_size} has no room for {len(object_names)} labels and `none`; "
            f"use at least {len(object_names) + 1}"
        )
    side = experiment.data.image_size
    return GivenLayout(object_names, conditioning.vocab_size, conditioning.context_length, (side, side))


@dataclass(frozen=True)
class GivenLayout:
    """`tokens` int32 [context_length]."""

    is_map: ClassVar[bool] = False

    names: tuple[str, ...]
    vocab_size: int
    context_length: int
    size: tuple[int, int]
    """Height and width of the picture on which boxes are shown."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The list of boxes."""
        return (Part("boxes", f"a JSON list of boxes, in fractions of the picture, such as {_FORM}"),)

    def at(self, size: tuple[int, int]) -> "GivenLayout":
        """The same, shown on pictures of another size: boxes are shares of it."""
        return replace(self, size=size)

    @property
    def max_objects(self) -> int:
        """Objects that the tokens have room for."""
        return self.context_length // 3

    @property
    def lines(self) -> int:
        """Lines of the grid on which corners lie."""
        return int(np.sqrt(self.vocab_size - 1))

    def of_example(self, example: Example, rng: np.random.Generator) -> Arrays:
        """The example's objects in random order; where there are too many, the largest."""
        boxes, labels = example["boxes"], example["box_labels"]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = np.argsort(-areas, kind="stable")[: self.max_objects]
        kept = kept[rng.permutation(len(kept))]
        return {"tokens": self.tokens(boxes[kept], labels[kept])}

    def of_files(self, files: Mapping[str, Place]) -> Arrays:
        """The objects of a JSON list.

        Raises:
            UserError: it is no such list; an object has an unknown label or a box that is none; they are too many.
        """
        path, (part,) = files["boxes"], self.parts
        data = read_bytes(path, part.what)
        try:
            entries = parse_json(data)
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}); give {part.what}") from None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path} is not a list of objects; give {part.what}")
        if not 1 <= len(entries) <= self.max_objects:
            raise UserError(f"{path} has {len(entries)} boxes; the model takes 1 to {self.max_objects}")
        found = [self._read(entry, f"{path}, box {i}") for i, entry in enumerate(entries)]
        boxes, labels = (np.asarray(column) for column in zip(*found, strict=True))
        return {"tokens": self.tokens(boxes.astype(np.float32), labels.astype(np.int64))}

    def tokens(self, boxes: Float[np.ndarray, "n 4"], labels: Int[np.ndarray, " n"]) -> Int32[np.ndarray, " l"]:
        """The tokens of objects (1), filled up (2), (3)."""
        tokens = np.full(self.context_length, self.vocab_size - 1, np.int32)
        for i, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
            tokens[3 * i : 3 * i + 3] = label, self._corner(*box[:2]), self._corner(*box[2:])
        if self.context_length % 3 == 2:
            tokens[-2:] = self._corner(0.0, 0.0), self._corner(1.0, 1.0)
        return tokens

    def shown(self, arrays: Arrays) -> UInt8[np.ndarray, "h w 3"]:
        """The boxes as frames in a colour for each label."""
        height, width = self.size
        canvas = Image.new("RGB", (width, height), "white")
        pen, colours = ImageDraw.Draw(canvas), palette(1 + len(self.names))
        for label, *corners in arrays["tokens"][: 3 * self.max_objects].reshape(-1, 3):
            if label == self.vocab_size - 1:
                continue
            places = [(corner % self.lines, corner // self.lines) for corner in corners]
            ends = [
                round(float(v) / (self.lines - 1) * (side - 1))
                for place in places
                for v, side in zip(place, (width, height), strict=True)
            ]
            pen.rectangle(ends, outline=tuple(int(v) for v in colours[1 + label]), width=max(1, min(self.size) // 32))
        return np.asarray(canvas)

    def _corner(self, x: float, y: float) -> int:
        column, row = (round(float(np.clip(v, 0.0, 1.0)) * (self.lines - 1)) for v in (x, y))
        return row * self.lines + column

    def _read(self, entry: dict[str, Any], name: str) -> tuple[list[float], int]:
        if set(entry) != {"label", *_SIDES}:
            raise UserError(f"{name} has {', '.join(map(str, entry)) or 'nothing'}; it has to be as in {_FORM}")
        if entry["label"] not in self.names:
            raise UserError(f"{name} has the unknown label {entry['label']!r}; labels: {', '.join(self.names)}")
        sides = [entry[side] for side in _SIDES]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in sides):
            raise UserError(f"{name} is {sides}; all of {', '.join(_SIDES)} have to lie between 0 and 1")
        if sides[0] >= sides[2] or sides[1] >= sides[3]:
            raise UserError(f"{name} is {sides}; left has to be less than right, and top less than bottom")
        return [float(v) for v in sides], self.names.index(entry["label"])
