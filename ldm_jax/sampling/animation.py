"""Frames as an animation that runs for ever, there and back: GIF for everywhere, WebP in all its colours."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from ldm_jax.files.places import Place
from ldm_jax.pictures import to_pil

FRAME_MILLISECONDS = 120
SMALLEST_SIDE = 96


def write_animations(frames: Sequence[UInt8[np.ndarray, "h w c"]], stem: Place) -> list[Place]:
    """Write `stem`.gif and `stem`.webp, enlarged by whole numbers to at least 96 pixels; returns both."""
    scale = max(1, round(SMALLEST_SIDE / frames[0].shape[0]))
    there = [to_pil(np.repeat(np.repeat(frame, scale, 0), scale, 1)).convert("RGB") for frame in frames]
    first, *rest = [*there, *there[-2:0:-1]]
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("gif", "webp")]
    for path, how in zip(paths, ({"format": "GIF"}, {"format": "WEBP", "lossless": True}), strict=True):
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            first.save(file, save_all=True, append_images=rest, duration=FRAME_MILLISECONDS, loop=0, **how)
        temporary.replace(path)
    return paths
