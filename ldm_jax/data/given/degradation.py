"""How small pictures become as bad as those that people want to enlarge: a light BSRGAN.

Blur, a change of size on the way, noise and JPEG's compression come in random order, then the picture is brought to
its size and compressed again (Zhang et al. 2021, arXiv:2103.14006, section 3, in the strengths of LDM's light variant).
With s the factor and u uniform in [0, 1]:

(1) blur by N(0, R diag(l1, l2) R^T) with l = (4 + s) / 4 u, or by a round Gaussian of deviation (2 + s / 5) / 4 u
(2) resampling to 1 / k of the size, k = 1 + (s - 1) u, by a random filter
(3) noise of deviation 1 to 2 (of 255), the same in all channels or not
(4) JPEG of quality 80 to 95, nine times out of ten
"""

import io
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ldm_jax.data.pictures import from_array, to_array

Step: TypeAlias = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""Picture in [0, 255], factor and random numbers to a picture."""

_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX)
_RADIUS = 4


def degrade(image: UInt8[np.ndarray, "h w c"], factor: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 c"]:
    """A picture `factor` times smaller that has been through (1) to (4)."""
    height, width = (side // factor for side in image.shape[:2])
    picture = image.astype(np.float32)
    steps: list[Step] = [blur, resample, add_noise, compress]
    for i in rng.permutation(len(steps)):
        picture = steps[i](picture, factor, rng)
    return _to_bytes(compress(_resize(picture, (width, height), _FILTERS[rng.integers(len(_FILTERS))]), factor, rng))


def shrink(image: UInt8[np.ndarray, "h w c"], factor: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """A picture `factor` times smaller, bicubic."""
    height, width = (side // factor for side in image.shape[:2])
    return to_array(from_array(image).resize((width, height), Image.Resampling.BICUBIC))


def blur(picture: Float[np.ndarray, "h w c"], factor: int, rng: np.random.Generator) -> Float[np.ndarray, "h w c"]:
    """Blur by a random Gaussian (1); edges are repeated."""
    if rng.random() < 0.5:
        l1, l2 = (4 + factor) / 4 * rng.random(2)
    else:
        l1 = l2 = ((2 + factor / 5) / 4 * rng.random()) ** 2
    kernel = gaussian_kernel(max(l1, 1e-3), max(l2, 1e-3), np.pi * rng.random())
    padded = np.pad(picture, ((_RADIUS, _RADIUS), (_RADIUS, _RADIUS), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(0, 1))
    return np.einsum("hwcij,ij->hwc", windows, kernel, optimize=True).astype(np.float32)


def gaussian_kernel(l1: float, l2: float, angle: float) -> Float[np.ndarray, "k k"]:
    """A Gaussian of variances l1 and l2 along its axes, turned by an angle; it sums to 1."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = turn @ np.diag([1 / l1, 1 / l2]) @ turn.T
    at = np.arange(-_RADIUS, _RADIUS + 1)
    places = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1)
    weights = np.exp(-0.5 * np.einsum("ijx,xy,ijy->ij", places, inverse, places))
    return weights / weights.sum()


def resample(picture: Float[np.ndarray, "h w c"], factor: int, rng: np.random.Generator) -> Float[np.ndarray, "..."]:
    """Go to a random size on the way (2)."""
    share = 1 / (1 + (factor - 1) * rng.random())
    height, width = (max(1, round(side * share)) for side in picture.shape[:2])
    return _resize(picture, (width, height), _FILTERS[rng.integers(len(_FILTERS))])


def add_noise(picture: Float[np.ndarray, "h w c"], factor: int, rng: np.random.Generator) -> Float[np.ndarray, "h w c"]:
    """Add noise (3)."""
    del factor
    channels = picture.shape[-1] if rng.random() < 0.6 else 1
    noise = rng.normal(size=(*picture.shape[:2], channels)) * rng.uniform(1, 2)
    return (picture + noise).astype(np.float32)


def compress(picture: Float[np.ndarray, "h w c"], factor: int, rng: np.random.Generator) -> Float[np.ndarray, "h w c"]:
    """Leave JPEG's traces (4)."""
    del factor
    if rng.random() >= 0.9:
        return picture
    file = io.BytesIO()
    from_array(_to_bytes(picture)).save(file, "JPEG", quality=int(rng.integers(80, 96)))
    with Image.open(file) as read:
        return to_array(read).astype(np.float32)


def _resize(picture: np.ndarray, size: tuple[int, int], kind: Image.Resampling) -> np.ndarray:
    return to_array(from_array(_to_bytes(picture)).resize(size, kind)).astype(np.float32)


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
