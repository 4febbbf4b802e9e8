"""Where the square that a model sees is cut out of a picture of h x w pixels.

The picture is resized so that its shorter side m = min(h, w) has r pixels, and of what comes out a square of s pixels
is cut; both are done in one, by cutting a square of s m / r pixels out of the picture and resizing that.

(1) in the centre of the picture
(2) or anywhere: top and left are whole pixels of the resized picture, all of 0 .. floor(h r / m) - s and
    0 .. floor(w r / m) - s alike
(3) where r is drawn between two numbers a and b, the share s / r is uniform between s / b and s / a, as in
    latent-diffusion's ImageNetSR (ldm/data/imagenet.py)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, UInt8

from ldm_jax.config import DataConfig


class Square(NamedTuple):
    """A square in a picture."""

    top: float
    """In pixels of the picture, as left and side are."""
    left: float
    side: float
    told: tuple[int, int]
    """Top and left in pixels of the resized picture."""
    mirrored_left: int
    """Left in pixels of the resized picture's mirror image."""

    def holds_all_of(self, height: int, width: int) -> bool:
        """Whether it is the whole picture."""
        return height == width == self.side

    def sizes(self, height: int, width: int, size: int) -> Int32[np.ndarray, "2 6"]:
        """What SDXL is told of the picture and of its mirror image: height and width of the original, top and left of
        the square, height and width of what comes out (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""
        top, left = self.told
        return np.array([[height, width, top, x, size, size] for x in (left, self.mirrored_left)], np.int32)


def centre_square(height: int, width: int, config: DataConfig) -> Square:
    """The square (1), of the smaller size where sizes are drawn."""
    shorter, size = min(height, width), config.image_size
    resized = _kept(shorter, config) if config.resize == "keep" else config.smallest_side
    side = shorter * size / resized
    top, left = (height - side) / 2, (width - side) / 2
    told = round(top * resized / shorter), round(left * resized / shorter)
    return Square(top, left, side, told, told[1])


def random_square(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Square:
    """A square (2) of a size (3)."""
    shorter, size = min(height, width), config.image_size
    resized = _kept(shorter, config) if config.resize == "keep" else _drawn(config, rng)
    room = [length * resized // shorter - size for length in (height, width)]
    top, left = (int(rng.integers(most + 1)) for most in room)
    scale, side = shorter / resized, shorter * size / resized
    # What rounding puts beyond the edge by a millionth of a pixel is pulled back.
    return Square(min(top * scale, height - side), min(left * scale, width - side), side, (top, left), room[1] - left)


def cut_labels(labels: UInt8[np.ndarray, "h w 1"], square: Square, size: int) -> UInt8[np.ndarray, "size size 1"]:
    """The square of a label map, without mixing labels."""
    rows, columns = (
        (start + (np.arange(size) + 0.5) * square.side / size).astype(int) for start in (square.top, square.left)
    )
    return labels[rows][:, columns]


def cut_boxes(
    boxes: Float[np.ndarray, "n 4"], square: Square, height: int, width: int
) -> tuple[Float[np.ndarray, "m 4"], np.ndarray]:
    """The parts of boxes (left, top, right, bottom, in fractions) within the square, in fractions of it, and which they
    are of: what lies outside is left out."""
    scale, start = np.array([width, height] * 2), np.array([square.left, square.top] * 2)
    cut = np.clip((boxes * scale - start) / square.side, 0, 1).astype(boxes.dtype)
    seen = np.flatnonzero((cut[:, 0] < cut[:, 2]) & (cut[:, 1] < cut[:, 3]))
    return cut[seen], seen


def _kept(shorter: int, config: DataConfig) -> int:
    return max(shorter, config.image_size)


def _drawn(config: DataConfig, rng: np.random.Generator) -> int:
    small, large = config.smallest_side, config.largest_side
    if small == large:
        return small
    size = config.image_size
    return min(max(round(size / rng.uniform(size / large, size / small)), small), large)
