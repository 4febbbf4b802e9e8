"""What a model learns from: the data set, its size and how it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ldm_jax.config.checks import (
    HOW,
    require,
    require_fraction,
    require_not_negative,
    require_positive,
    require_positive_value,
)


@dataclass(frozen=True, kw_only=True)
class OpenMoji:
    """OpenMoji pictograms with their Unicode captions (needs the `demo` extra)."""

    groups: tuple[str, ...] = ()
    """Unicode groups to keep, such as food-drink; empty keeps all but `component`."""
    max_tags: int = 3
    """Largest number of keywords that a training caption may carry behind its label; the number is drawn each step."""

    def __post_init__(self) -> None:
        require_not_negative(self, "max_tags")


@dataclass(frozen=True, kw_only=True)
class OpenMojiScenes:
    """Scenes of several OpenMoji pictograms with boxes, label map and caption (needs the `demo` extra)."""

    num_examples: int = 4000
    """Scenes in the training split; the test split has a tenth of it, of pictograms that no training scene shows."""
    max_objects: int = 3
    """Most pictograms in a scene; the number is drawn, and fewer are placed where there is no room."""
    groups: tuple[str, ...] = ()
    """Unicode groups to take pictograms from; empty takes all but `component`."""

    def __post_init__(self) -> None:
        require_positive(self, "num_examples", "max_objects")


@dataclass(frozen=True, kw_only=True)
class FashionMnist:
    """Fashion-MNIST from its four idx files (Debian package dataset-fashion-mnist)."""

    directory: str = field(default="/usr/share/datasets/fashion-mnist", metadata=HOW)
    """Folder of the idx files, gzipped or not."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A folder of pictures: class sub-folders, captions from a .txt beside a picture, or a metadata.jsonl."""

    directory: str = field(default=".", metadata=HOW)
    """The folder; `train/` and `test/` inside it are taken as the splits where they exist."""
    test_fraction: float = 0.05
    """Share held out for the test split, chosen by a hash of the file name, where there is no `test/` folder."""

    def __post_init__(self) -> None:
        require_fraction(self, "test_fraction")


@dataclass(frozen=True, kw_only=True)
class PreparedTfds:
    """Any TFDS data set that is already prepared on this machine as array_record."""

    name: str = ""
    """Name (`cifar10`), name with configuration (`name/config:1.0.0`), or the folder of a prepared version."""
    directory: str | None = field(default=None, metadata=HOW)
    """TFDS data_dir; its own default when not given."""
    train_split: str = "train"
    """Split trained on, in TFDS slicing syntax."""
    test_split: str = "test"
    """Held-out split, in TFDS slicing syntax."""
    image_key: str = "image"
    """Feature that holds the picture."""
    label_key: str = "label"
    """Feature that holds the class, if any."""
    caption_key: str = "caption"
    """Feature that holds the caption, if any."""
    objects_key: str = "objects"
    """Feature that holds the objects with their boxes, a sequence of `bbox` and `label`, if any."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Generated coloured shapes with captions and classes: no files needed, for tests and first tries."""

    num_examples: int = 600
    """Pictures in the training split; the test split has a tenth of it."""

    def __post_init__(self) -> None:
        require_positive(self, "num_examples")


Resize: TypeAlias = int | tuple[int, int] | Literal["keep"] | None
"""What becomes of a picture before a square is cut out of it; see `DataConfig.resize`."""

Source: TypeAlias = OpenMoji | OpenMojiScenes | FashionMnist | ImageFolder | PreparedTfds | Shapes


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pictures, and what is done to them before the model sees them."""

    source: Source = field(default_factory=Shapes)
    image_size: int = 32
    """Height and width in pixels of the square that is cut out of each picture, which the model sees."""
    resize: Resize = None
    """Pixels of the shorter side before the square is cut; None: image_size, so that the square has all of it. Two
    numbers draw it for each sample (crop=random): the square's side is then a share of the shorter side, any between
    image_size over the second and image_size over the first alike. `keep` leaves a picture as it is, unless it is too
    small."""
    crop: Literal["center", "random"] = "center"
    """Where the square is cut in training: in the centre, or anywhere in the picture, anew for each sample. Held-out
    pictures are cut in the centre, resized to the smaller number where there are two."""
    image_channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    horizontal_flip: bool = False
    """Show each picture mirrored half of the time."""
    cache_latents: bool = True
    """Encode the whole data set once before the diffusion stage (small sets); else encode each batch."""
    latents: str | None = field(default=None, metadata=HOW)
    """Folder that `ldm latents encode` has written: the second stage learns from it, and no picture is opened."""
    cache_dir: str | None = field(default=None, metadata=HOW)
    """Where prepared data sets are kept; default: ldm_jax/data in the user's cache folder."""
    num_threads: int = field(default=2, metadata=HOW)
    """Reader threads of the input pipeline (`--data.num-threads 0` reads in the main thread)."""

    def __post_init__(self) -> None:
        require_positive(self, "image_size")
        self._check_resize()
        require(
            self.latents is None or "://" not in self.latents,
            f"DataConfig.latents={self.latents} is in an object store; latents are read from a disk: copy them to one",
        )
        require_not_negative(self, "num_threads")
        require(self.num_threads <= 256, f"DataConfig.num_threads={self.num_threads} must be at most 256")

    @property
    def smallest_side(self) -> int:
        """Pixels of the shorter side of a resized picture, at least; of one that is kept, too."""
        return min(self._sides)

    @property
    def largest_side(self) -> int:
        """Pixels of the shorter side that a resized picture may have, for which sources draw what they draw."""
        return max(self._sides)

    @property
    def cuts_whole_pictures(self) -> bool:
        """Whether the square is cut out of more than the centre square of a picture."""
        return self.crop == "random" or self.resize not in (None, self.image_size)

    @property
    def _sides(self) -> tuple[int, ...]:
        if self.resize is None or self.resize == "keep":
            return (self.image_size,)
        return self.resize if isinstance(self.resize, tuple) else (self.resize,)

    def _check_resize(self) -> None:
        size = self.image_size
        for side in self._sides:
            require_positive_value("DataConfig.resize", side)
            require(
                side >= size,
                f"DataConfig.resize={self.resize} is smaller than image_size={size}, the square that is cut out; use "
                f"{size} at least",
            )
        if isinstance(self.resize, tuple):
            small, large = self.resize
            require(small <= large, f"DataConfig.resize={self.resize} must rise; use {large} {small}")
            require(
                self.crop == "random",
                f"DataConfig.resize={self.resize} is drawn for each sample, and crop=center draws nothing; use "
                f"crop=random, or one number such as {small}",
            )
