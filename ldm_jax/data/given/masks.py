"""Random masks of the kinds that people draw: rectangles, thin strokes, wide strokes, and margins to paint around.

Sizes are shares of the picture's side, so that masks look alike at every size (those of wide strokes follow LaMa:
Suvorov et al. 2021, arXiv:2109.07161, section 2.3).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from ldm_jax.config import MaskKind

MIN_SHARE = 0.03
"""Smallest share of a picture that a mask covers."""
_TRIES = 20
_SUPERSAMPLING = 4


def random_mask(
    kinds: Sequence[MaskKind], size: int, max_share: float, rng: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """A mask of one of the kinds, True in the holes, which cover between MIN_SHARE and max_share of the picture."""
    for _ in range(_TRIES):
        mask = _draw(kinds[int(rng.integers(len(kinds)))], size, rng)
        if MIN_SHARE <= mask.mean() <= max_share:
            return mask
    mask = np.zeros((size, size), bool)
    side = max(1, int(size * max_share**0.5 * rng.uniform(0.7, 1.0)))
    top, left = rng.integers(size - side + 1, size=2)
    mask[top : top + side, left : left + side] = True
    return mask


def _draw(kind: MaskKind, size: int, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    if kind == "margins":
        return _margins(size, rng)
    side = size * _SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 4)):
        if kind == "boxes":
            _rectangle(pen, side, rng)
        elif kind == "brush":
            _stroke(pen, side, rng.uniform(0.04, 0.1) * side, rng)
        else:
            _stroke(pen, side, rng.uniform(0.15, 0.3) * side, rng)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) >= 128


def _margins(size: int, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """One to four sides of the picture, each up to half of it."""
    mask = np.zeros((size, size), bool)
    for i in rng.permutation(4)[: rng.integers(1, 5)]:
        width = max(1, round(size * rng.uniform(0.05, 0.5)))
        np.rot90(mask, i)[:width] = True  # a view: each turn has another side on top
    return mask


def _rectangle(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    width, height = rng.uniform(0.15, 0.6, 2) * side
    left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
    pen.rectangle((left, top, left + width, top + height), fill=255)


def _stroke(pen: ImageDraw.ImageDraw, side: int, width: float, rng: np.random.Generator) -> None:
    """A line of a few straight parts with round corners."""
    place, angle = rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(2, 6)):
        angle += rng.uniform(-1.2, 1.2)
        step = rng.uniform(0.1, 0.35) * side * np.array([np.cos(angle), np.sin(angle)])
        following = np.clip(place + step, 0, side)
        pen.line((*place, *following), fill=255, width=max(1, round(width)))
        pen.ellipse((*(following - width / 2), *(following + width / 2)), fill=255)
        place = following
