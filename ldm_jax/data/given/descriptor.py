"""A plain embedding of pictures, computed and not learned: where which edges and which colours are.

It stands in for CLIP's, which does not come with this project: it needs no weights, is the same everywhere, and
pictures near each other in it look alike, though they may mean different things.

(1) in each of 4 x 4 cells: a histogram of the directions of gradients over 8 bins of 45 degrees, weighted by their
    strength, its entries' roots taken and all of them brought to unit length (Dalal and Triggs 2005)
(2) in each cell: the mean of each of three colours in [-1, 1]; all of them brought to unit length
(3) both side by side, times the root of half their number, so that entries are about 1 in size
"""

import numpy as np
from jaxtyping import Float, Float32

CELLS, BINS = 4, 8
WIDTH = CELLS * CELLS * (BINS + 3)


def describe(image: Float[np.ndarray, "h w c"]) -> Float32[np.ndarray, " d"]:
    """The embedding (3) of a picture in [-1, 1] of at least CELLS pixels a side; WIDTH numbers."""
    grey = image.mean(axis=-1)
    dy, dx = np.gradient(grey)
    strength, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    bins = np.floor((angle / (2 * np.pi) % 1.0) * BINS).astype(int) % BINS
    edges = _cells(np.eye(BINS, dtype=np.float32)[bins] * strength[..., None])
    colours = _cells(np.broadcast_to(image, (*image.shape[:2], 3)))
    both = np.concatenate([_unit(np.sqrt(edges)), _unit(colours)])
    return (both * np.sqrt(WIDTH / 2)).astype(np.float32)


def _cells(values: np.ndarray) -> np.ndarray:
    """Means over cells, row by row, flat."""
    rows = [part.mean(axis=0) for part in np.array_split(values, CELLS, axis=0)]
    return np.stack([part.mean(axis=0) for row in rows for part in np.array_split(row, CELLS, axis=0)]).reshape(-1)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / max(float(np.linalg.norm(values)), 1e-6)
