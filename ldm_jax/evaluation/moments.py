"""Mean and covariance of features as they stream by, the same to the bit however they are cut into batches.

Rows are gathered into blocks of BLOCK by their position, in float64, and each block is merged into what came before:

(1) m = m_a + (m_b - m_a) n_b / n
(2) M = M_a + M_b + (m_b - m_a)(m_b - m_a)^T n_a n_b / n, with M the sum of products about the mean; cov = M / (n - 1)
    Chan, Golub and LeVeque 1983, The American Statistician 37(3)
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UserError

BLOCK = 256
"""Rows of a block; part of the result's last bits."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a Frechet distance is computed from."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None
    """Pictures behind it; None where a file does not say."""


class Moments:
    """Add rows in the order of the pictures, then ask for the statistics."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._pending: list[np.ndarray] = []
        self._merged: tuple[int, np.ndarray, np.ndarray] | None = None

    def add(self, rows: Float[np.ndarray, "n d"]) -> None:
        """Take the next rows."""
        self._pending.append(np.asarray(rows, np.float64))
        if sum(map(len, self._pending)) < BLOCK:
            return
        rest = np.concatenate(self._pending)
        for start in range(0, len(rest) - BLOCK + 1, BLOCK):
            self._merged = _merge(self._merged, rest[start : start + BLOCK])
        self._pending = [rest[len(rest) // BLOCK * BLOCK :]]

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of all rows so far.

        Raises:
            UserError: there are fewer than two.
        """
        last = np.concatenate(self._pending) if self._pending else np.zeros((0, 1))
        merged = _merge(self._merged, last) if len(last) else self._merged
        if merged is None or merged[0] < 2:
            raise UserError(f"{0 if merged is None else merged[0]} pictures have no covariance; give at least two")
        count, mean, scatter = merged
        return Statistics(mean=mean, covariance=scatter / (count - 1), count=count)


def statistics_of(features: Float[np.ndarray, "n d"]) -> Statistics:
    """Mean and covariance of all rows; raises UserError where `Moments.statistics` does."""
    moments = Moments()
    for start in range(0, len(features), BLOCK):  # float64 of few rows at once
        moments.add(features[start : start + BLOCK])
    return moments.statistics()


def _merge(
    before: tuple[int, np.ndarray, np.ndarray] | None, block: Float[np.ndarray, "n d"]
) -> tuple[int, np.ndarray, np.ndarray]:
    count, mean = len(block), block.mean(0)
    centred = block - mean
    scatter = centred.T @ centred
    if before is None:
        return count, mean, scatter
    total, delta = before[0] + count, mean - before[1]
    merged_scatter = before[2] + scatter + np.outer(delta, delta) * (before[0] * count / total)  # (2)
    return total, before[1] + delta * (count / total), merged_scatter  # (1)
