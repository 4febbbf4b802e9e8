"""What is done to one example on its way into a batch: pure functions of the example and its sample index.

A random choice depends on the seed, its purpose and the global sample index n alone, never on history, threads,
processes or batch size, so the same sample is cut, mirrored and captioned alike whatever run it belongs to:

(1) rng(seed, purpose, n) = PCG64(SeedSequence([seed, crc32(purpose), n]))
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int32, UInt8

from ldm_jax.config import DataConfig
from ldm_jax.data.pictures import cut_square, from_array, to_array
from ldm_jax.data.source import Example, SourceInfo
from ldm_jax.data.squares import Square, centre_square, cut_boxes, cut_labels, random_square

Transform: TypeAlias = Callable[[Example, int], Example]
"""Maps an example and its global sample index to an example."""


TRANSFORM = "shorter side to the size by Lanczos, centre square, 0..255 to -1..1"
"""What `FitPicture` does to whole pictures, in words that stand in what was made with it: whoever changes one changes
the other."""


def transform_in_words(config: DataConfig) -> str:
    """What `FitPicture` does, in words that stand in what was made with it."""
    if not config.cuts_whole_pictures:
        return TRANSFORM
    match config.resize:
        case None:
            resized = "shorter side to the size by Lanczos"
        case "keep":
            resized = "not resized unless smaller than the size"
        case (small, large):
            resized = f"shorter side to {small}..{large} (held out: {small}) by Lanczos"
        case side:
            resized = f"shorter side to {side} by Lanczos"
    where = "a square anywhere (held out: in the centre)" if config.crop == "random" else "centre square"
    return f"{resized}, {where}, 0..255 to -1..1"


def sample_rng(seed: int, purpose: str, n: int) -> np.random.Generator:
    """The random numbers of one purpose for one sample (1)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), n])


@dataclass(frozen=True)
class FitPicture:
    """Cut `image` to [size, size, channels] and map 0..255 to float32 in [-1, 1]; moments pass through.

    Label maps, as large as their pictures, are cut alike, without mixing labels, and so are boxes: what is outside is
    left out.
    """

    config: DataConfig
    """How large the square is, and of what."""
    seed: int | None = None
    """Of where it is cut, if the configuration says at random; None cuts in the centre."""
    tell_sizes: bool = False
    """Add `sizes` int32 [2, 6] in pixels, as SDXL is told of them: of the picture and of its mirror image."""

    def __call__(self, example: Example, n: int) -> Example:
        """Apply to the sample with index n."""
        if "image" not in example:
            return example
        config, (height, width) = self.config, example["image"].shape[:2]
        square = self._square(height, width, n)
        fitted = {**example, "image": self._image(example["image"], square)}
        if "label_map" in example:
            fitted["label_map"] = cut_labels(example["label_map"], square, config.image_size)
        if "boxes" in example and not square.holds_all_of(height, width):
            fitted["boxes"], seen = cut_boxes(example["boxes"], square, height, width)
            fitted["box_labels"] = example["box_labels"][seen]
        if self.tell_sizes:
            original_height, original_width = map(int, example.get("original_size", (height, width)))
            fitted["sizes"] = square.sizes(original_height, original_width, config.image_size)
        return fitted

    def _square(self, height: int, width: int, n: int) -> Square:
        if self.seed is None or self.config.crop == "center":
            return centre_square(height, width, self.config)
        return random_square(height, width, self.config, sample_rng(self.seed, "crop", n))

    def _image(self, image: UInt8[np.ndarray, "h w c"], square: Square) -> Float[np.ndarray, "size size channels"]:
        size, channels = self.config.image_size, self.config.image_channels
        if image.shape != (size, size, channels) or not square.holds_all_of(size, size):
            image = to_array(cut_square(from_array(image), (square.top, square.left, square.side), size, channels))
        fitted = image.astype(np.float32)
        fitted /= np.float32(127.5)
        fitted -= np.float32(1.0)
        return fitted


@dataclass(frozen=True)
class Mirror:
    """Mirror left and right with a probability, with labels and boxes; of moments [flips, h, w, c] and of sizes
    [flips, 6], take those of that mirroring."""

    seed: int
    probability: float

    def __call__(self, example: Example, n: int) -> Example:
        """Apply to the sample with index n."""
        mirrored = self.probability > 0 and sample_rng(self.seed, "mirror", n).random() < self.probability
        if "moments" in example:
            example = {**example, "moments": example["moments"][int(mirrored)]}
        if "sizes" in example:
            example = {**example, "sizes": _sizes_of(example["sizes"], mirrored)}
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


def training_transforms(
    config: DataConfig, info: SourceInfo, seed: int, *, tell_sizes: bool = False
) -> tuple[Transform, ...]:
    """What training sees: pictures cut anywhere or in the centre and mirrored half of the time as the configuration
    says, captions with tags; with `tell_sizes` also how they were cut."""
    return (
        FitPicture(config, seed, tell_sizes),
        Mirror(seed, 0.5 if config.horizontal_flip else 0.0),
        ChooseCaption(seed, info.max_tags),
    )


def evaluation_transforms(config: DataConfig, *, tell_sizes: bool = False) -> tuple[Transform, ...]:
    """What evaluation sees: nothing random, the bare caption."""
    return (FitPicture(config, None, tell_sizes), Mirror(0, 0.0))


def _sizes_of(sizes: Int32[np.ndarray, "..."], mirrored: bool) -> Int32[np.ndarray, "6"]:
    """Those of a picture or of its mirror image; latents of earlier versions have but one, [6]."""
    rows = sizes.reshape(-1, 6)
    return rows[min(int(mirrored), len(rows) - 1)]


def _mirror_boxes(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    left, top, right, bottom = boxes.T
    return np.stack([1 - right, top, 1 - left, bottom], axis=-1)
