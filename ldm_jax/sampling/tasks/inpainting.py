"""Inpainting with any model: which cells of a latent are known, and the known pixels put back at the end."""

import numpy as np
from jaxtyping import Bool, Float32, UInt8


def latent_hole(hole: Bool[np.ndarray, "h w"], shape: tuple[int, int]) -> Float32[np.ndarray, "y x 1"]:
    """1 for each cell of a latent of which any pixel is to be painted, 0 for those that are known whole."""
    height, width = (whole // part for whole, part in zip(hole.shape, shape, strict=True))
    pixels = hole.astype(np.float32).reshape(shape[0], height, shape[1], width)
    return pixels.max(axis=(1, 3))[..., None]


def paste(
    drawn: UInt8[np.ndarray, "h w c"], image: UInt8[np.ndarray, "h w c"], hole: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w c"]:
    """What is drawn in the hole, and the picture itself around it."""
    return np.where(hole[..., None], drawn, image)
