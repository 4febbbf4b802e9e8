"""Fidelity and diversity apart, by balls around each picture that reach its k-th nearest neighbour of its own set.

(1) precision: share of samples inside a ball of the reference; recall: share of the reference inside a ball of the
    samples                                             Kynkäänniemi et al. 2019, arXiv:1904.06991 (k = 3)
(2) density: mean number of balls of the reference that a sample is inside of, over k; coverage: share of the balls of
    the reference that hold a sample                    Naeem et al. 2020, arXiv:2002.09797 (k = 5)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ldm_jax.errors import UserError

_ROWS = 1024
MOST_NEIGHBOURS = 5
"""Neighbours that the scores take of a picture, at most."""


class Membership(NamedTuple):
    """One value for each picture; the scores are their means."""

    precision: Float[np.ndarray, " n"]
    recall: Float[np.ndarray, " m"]
    density: Float[np.ndarray, " n"]
    coverage: Float[np.ndarray, " m"]


def membership(
    samples: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    *,
    manifold_neighbours: int = 3,
    density_neighbours: int = MOST_NEIGHBOURS,
) -> Membership:
    """Which sample is inside which balls, and the other way round (1), (2).

    Raises:
        UserError: there are no more pictures of one kind than neighbours.
    """
    most = max(manifold_neighbours, density_neighbours)
    if min(len(samples), len(reference)) <= most:
        raise UserError(
            f"{len(samples)} samples and {len(reference)} reference pictures are too few for the {most} nearest "
            f"neighbours of each; give more than {most} of both"
        )
    samples, reference = samples.astype(np.float64), reference.astype(np.float64)
    real = _radii(reference, manifold_neighbours)
    inside_real, _ = _inside(samples, reference, real)
    inside_fake, _ = _inside(reference, samples, _radii(samples, manifold_neighbours))
    counts, covered = _inside(samples, reference, _radii(reference, density_neighbours))
    return Membership(
        precision=(inside_real > 0).astype(np.float64),
        recall=(inside_fake > 0).astype(np.float64),
        density=counts / density_neighbours,
        coverage=covered.astype(np.float64),
    )


def _distances(x: Float[np.ndarray, "a d"], y: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "a b"]:
    """Squared distances."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def _radii(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each to its k-th neighbour, not counting itself."""
    radii = np.empty(len(x))
    for start in range(0, len(x), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(x)))
        distances = _distances(x[rows], x)
        distances[np.arange(len(rows)), rows] = -1.0  # itself comes first, also beside its copies
        radii[rows] = np.partition(distances, k, axis=1)[:, k]
    return radii


def _inside(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], radii: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " m"]]:
    """For each point the number of balls that it is inside of, and for each ball whether it holds a point."""
    counts, holds = np.empty(len(points)), np.zeros(len(centres), bool)
    for start in range(0, len(points), _ROWS):
        inside = _distances(points[start : start + _ROWS], centres) <= radii
        counts[start : start + _ROWS] = inside.sum(1)
        holds |= inside.any(0)
    return counts, holds
