"""Generated pictures of coloured shapes with captions and classes: data for tests and first tries, from nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from ldm_jax.config import DataConfig, Shapes
from ldm_jax.data.local_builder import LocalBuilder, LocalInfo
from ldm_jax.data.preparation import prepare, prepared_fingerprint
from ldm_jax.data.records import Keys, RecordSource, open_records
from ldm_jax.data.source import Split
from ldm_jax.data.transforms import sample_rng

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 80, 220), "yellow": (240, 200, 40)}
SIZES = {"small": 0.2, "big": 0.38}
_VERSION = "1.0.0"
_SUPERSAMPLING = 4


def open_source(config: DataConfig, split: Split) -> RecordSource:
    """Generate the shapes at the configured size, or find them generated."""
    source = config.source
    assert isinstance(source, Shapes)
    key = f"shapes-{_VERSION}-{source.num_examples}-{config.largest_side}px"
    folder = prepare(
        key, lambda data_dir: ShapesBuilder(source.num_examples, config.largest_side, data_dir), config.cache_dir
    )
    keys = Keys(caption="caption", label="shape", id="id")
    return open_records(folder, split, keys, name="shapes", split=split, fingerprint=prepared_fingerprint(folder))


class ShapesBuilder(LocalBuilder, skip_registration=True):
    """One shape on white, in one of four colours, at a random place."""

    name = "shapes"
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, num_examples: int, image_size: int, data_dir: str) -> None:
        """Write below `data_dir`."""
        self.num_examples = num_examples
        self.image_size = image_size
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(self.image_size, self.image_size, 3), encoding_format="png"),
            "caption": tfds.features.Text(),
            "shape": tfds.features.ClassLabel(names=list(SHAPES)),
            "id": tfds.features.Text(),
        }
        return LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        num_test = max(1, self.num_examples // 10)
        return {
            "train": self._generate_examples("train", self.num_examples),
            "test": self._generate_examples("test", num_test),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in range(count):
            rng = sample_rng(0, f"shapes {split}", i)
            shape, colour, extent = (str(rng.choice(list(names))) for names in (SHAPES, COLOURS, SIZES))
            picture = draw(shape, colour, extent, rng.uniform(0.4, 0.6, 2), self.image_size)
            yield (
                str(i),
                {"image": picture, "caption": f"a {extent} {colour} {shape}", "shape": shape, "id": f"{split}{i}"},
            )


def draw(shape: str, colour: str, extent: str, centre: np.ndarray, size: int) -> Image.Image:
    """Draw a shape; `centre` is x and y as fractions of the width."""
    width = size * _SUPERSAMPLING
    canvas = Image.new("RGB", (width, width), "white")
    pen = ImageDraw.Draw(canvas)
    radius = SIZES[extent] * width
    outline = [tuple(float(v) for v in point) for point in centre * width + radius * _outline(shape)]
    pen.polygon(outline, fill=COLOURS[colour])
    return canvas.resize((size, size), Image.Resampling.BOX)


def _outline(shape: str) -> np.ndarray:
    corners = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[shape]
    start = np.pi / 4 if shape == "square" else -np.pi / 2
    angles = start + np.arange(corners) * 2 * np.pi / corners
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if shape == "star" else np.ones(corners)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)
