"""Retrieval-augmented generation: embeddings of the training pictures nearest to a picture, as context.

(1) neighbours of x = the k pictures of the training split, without x itself, of the smallest |e(x) - e(y)|

Blattmann et al. 2022, arXiv:2204.11824, with the embedding of `descriptor` in place of CLIP's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

from ldm_jax.config import EmbeddingConditioning, Experiment, Neighbours
from ldm_jax.data.given.descriptor import CELLS, WIDTH, describe
from ldm_jax.data.given.files import read_bytes, to_float
from ldm_jax.data.given.given import Arrays, Part
from ldm_jax.data.given.make import Load
from ldm_jax.data.pictures import fit_square, from_array, open_picture, to_array
from ldm_jax.data.source import Example, Source
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place

_TILES = 2


def make(experiment: Experiment, object_names: tuple[str, ...], load: Load) -> "GivenNeighbours":
    """With the training split of an experiment as the database.

    Raises:
        UserError: the model takes embeddings of another width, more than there are, or pictures too small.
    """
    del object_names
    config, conditioning = experiment.given, experiment.conditioning
    assert isinstance(config, Neighbours) and isinstance(conditioning, EmbeddingConditioning)
    if conditioning.context_dim != WIDTH:
        raise UserError(
            f"conditioning.context_dim={conditioning.context_dim} is not the width of the embedding of neighbours; use "
            f"{WIDTH}"
        )
    size, channels = experiment.data.image_size, experiment.data.image_channels
    if size < CELLS:
        raise UserError(f"data.image_size={size} is too small for neighbours; use at least {CELLS}")
    source = load("train")
    if len(source) <= conditioning.context_length:
        raise UserError(
            f"conditioning.context_length={conditioning.context_length} neighbours need more pictures than the "
            f"{len(source)} of {source.info.name}/{source.info.split}; use at most {len(source) - 1}"
        )
    count = max(min(config.database, len(source)), conditioning.context_length + 1)
    return make_database(source, count, conditioning.context_length, size, channels)


def make_database(source: Source, pictures: int, count: int, size: int, channels: int) -> "GivenNeighbours":
    """Embed `pictures` pictures of a source, evenly spaced."""
    chosen = np.linspace(0, len(source) - 1, pictures).round().astype(np.int64)
    examples = [source[int(i)] for i in chosen]
    embeddings = np.stack([describe(_fitted(example["image"], size, channels)) for example in examples])
    ids = np.array([example["id"] for example in examples])
    return GivenNeighbours(source, chosen, ids, embeddings, count, size, channels, (size, size))


@dataclass(frozen=True, eq=False)
class GivenNeighbours:
    """`embeddings` [neighbours, d], the nearest first."""

    is_map: ClassVar[bool] = False

    source: Source
    chosen: Int[np.ndarray, " n"]
    """Which pictures of the source are in the database."""
    ids: np.ndarray
    embeddings: Float32[np.ndarray, "n d"]
    count: int
    size: int
    """Side at which pictures are compared."""
    channels: int
    canvas: tuple[int, int]
    """Height and width at which neighbours are shown."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """A picture."""
        return (Part("like", "a picture whose neighbours are taken; it is cut to a square"),)

    def at(self, size: tuple[int, int]) -> "GivenNeighbours":
        """The same, shown at another size: neighbours are sought at that of training."""
        return replace(self, canvas=size)

    def of_example(self, example: Example, rng: np.random.Generator) -> Arrays:
        """The neighbours of the example's picture, which is none of them."""
        del rng
        return {"embeddings": self.embeddings[self.nearest(describe(example["image"]), without=example["id"])]}

    def of_files(self, files: Mapping[str, Place]) -> Arrays:
        """The neighbours of a picture of any size.

        Raises:
            UserError: it cannot be read.
        """
        (part,) = self.parts
        picture = open_picture(read_bytes(files["like"], part.what), str(files["like"]))
        image = to_float(to_array(fit_square(picture, self.size, self.channels)))
        return {"embeddings": self.embeddings[self.nearest(describe(image))]}

    def nearest(self, embedding: Float32[np.ndarray, " d"], without: str | None = None) -> Int[np.ndarray, " k"]:
        """Places in the database of the nearest pictures (1), without one of them."""
        distance = np.square(self.embeddings).sum(axis=-1) - 2 * self.embeddings @ embedding
        distance = np.where(self.ids == without, np.inf, distance) if without is not None else distance
        return np.argsort(distance, kind="stable")[: self.count]

    def shown(self, arrays: Arrays) -> UInt8[np.ndarray, "h w 3"]:
        """The nearest four pictures, tiled in the middle."""
        height, width = self.canvas
        found = [np.argmin(np.abs(self.embeddings - e).sum(axis=-1)) for e in arrays["embeddings"][: _TILES**2]]
        side = min(height, width) // _TILES
        left, top = (width - _TILES * side) // 2, (height - _TILES * side) // 2
        canvas = Image.new("RGB", (width, height), "white")
        for i, place in enumerate(found):
            picture = from_array(self.source[int(self.chosen[place])]["image"])
            canvas.paste(fit_square(picture, side, 3), (left + i % _TILES * side, top + i // _TILES * side))
        return np.asarray(canvas)


def _fitted(image: UInt8[np.ndarray, "h w c"], size: int, channels: int) -> Float32[np.ndarray, "h2 w2 c2"]:
    fits = image.shape == (size, size, channels)
    return to_float(image if fits else to_array(fit_square(from_array(image), size, channels)))
