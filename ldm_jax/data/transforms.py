"""What is done to one example on its way into a batch: pure functions of the example and its sample index.

A random choice depends on the seed, its purpose and the global sample index n alone, never on history, threads,
processes or batch size, so the same sample is mirrored and captioned alike whatever run it belongs to:

(1) rng(seed, purpose, n) = PCG64(SeedSequence([seed, crc32(purpose), n]))
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax.config import DataConfig
from ldm_jax.data.pictures import fit_square, from_array, to_array
from ldm_jax.data.source import Example, SourceInfo

Transform: TypeAlias = Callable[[Example, int], Example]
"""Maps an example and its global sample index to an example."""


TRANSFORM = "shorter side to the size by Lanczos, centre square, 0..255 to -1..1"
"""What `FitPicture` does, in words that stand in what was made with it: whoever changes one changes the other."""


def sample_rng(seed: int, purpose: str, n: int) -> np.random.Generator:
    """The random numbers of one purpose for one sample (1)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), n])


@dataclass(frozen=True)
class FitPicture:
    """Resize and crop `image` to [size, size, channels] and map 0..255 to float32 in [-1, 1]; moments pass through.

    Label maps, as large as their pictures, are cut alike, without mixing labels.
    """

    size: int
    channels: int

    def __call__(self, example: Example, n: int) -> Example:
        """Apply to the sample with index n."""
        if "image" not in example:
            return example
        if "label_map" in example:
            example = {**example, "label_map": _fit_labels(example["label_map"], self.size)}
        image = example["image"]
        if image.shape != (self.size, self.size, self.channels):
            image = to_array(fit_square(from_array(image), self.size, self.channels))
        image = image.astype(np.float32)
        image /= np.float32(127.5)
        image -= np.float32(1.0)
        return {**example, "image": image}


@dataclass(frozen=True)
class TellSizes:
    """Add `sizes` int32 [6] in pixels, as SDXL is told of them (Podell et al. 2023, arXiv:2307.01952, section 2.2).

    They are height and width of the picture as it was, top and left of the square that `FitPicture` cuts out, counted
    in the resized picture, and height and width of what comes out. It has to see the picture before it is cut.
    """

    size: int

    def __call__(self, example: Example, n: int) -> Example:
        """Apply to the sample with index n."""
        height, width, _ = example["image"].shape
        side = min(height, width)
        top, left = (round((length - side) / 2 * self.size / side) for length in (height, width))
        return {**example, "sizes": np.asarray([height, width, top, left, self.size, self.size], np.int32)}


@dataclass(frozen=True)
class Mirror:
    """Mirror left and right with a probability, with labels and boxes; of moments [flips, h, w, c], take those of that
    mirroring."""

    seed: int
    probability: float

    def __call__(self, example: Example, n: int) -> Example:
        """Apply to the sample with index n."""
        mirrored = self.probability > 0 and sample_rng(self.seed, "mirror", n).random() < self.probability
        if "moments" in example:
            example = {**example, "moments": example["moments"][int(mirrored)]}
        if not mirrored:
            return example
        pictures = {key: example[key][:, ::-1] for key in ("image", "label_map") if key in example}
        boxes = {"boxes": _mirror_boxes(example["boxes"])} if "boxes" in example else {}
        return {**example, **pictures, **boxes}


@dataclass(frozen=True)
class ChooseCaption:
    """Put a number of tags, drawn from 0 to `max_tags`, behind the caption: "red apple, fruit, food"."""

    seed: int
    max_tags: int

    def __call__(self, example: Example, n: int) -> Example:
        """Apply to the sample with index n."""
        limit = min(self.max_tags, len(example["tags"]))
        if limit == 0:
            return example
        rng = sample_rng(self.seed, "caption", n)
        picks = rng.permutation(len(example["tags"]))[: rng.integers(limit + 1)]
        return {**example, "caption": ", ".join([example["caption"], *(example["tags"][i] for i in picks)])}


def training_transforms(config: DataConfig, info: SourceInfo, seed: int) -> tuple[Transform, ...]:
    """What training sees: mirrored half of the time if the configuration says so, captions with tags."""
    return (
        FitPicture(config.image_size, config.image_channels),
        Mirror(seed, 0.5 if config.horizontal_flip else 0.0),
        ChooseCaption(seed, info.max_tags),
    )


def evaluation_transforms(config: DataConfig) -> tuple[Transform, ...]:
    """What evaluation sees: nothing random, the bare caption."""
    return (FitPicture(config.image_size, config.image_channels), Mirror(0, 0.0))


def _fit_labels(labels: UInt8[np.ndarray, "h w 1"], size: int) -> UInt8[np.ndarray, "size size 1"]:
    height, width = labels.shape[:2]
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    rows, columns = ((start + (np.arange(size) + 0.5) * side / size).astype(int) for start in (top, left))
    return labels[rows][:, columns]


def _mirror_boxes(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    left, top, right, bottom = boxes.T
    return np.stack([1 - right, top, 1 - left, bottom], axis=-1)
