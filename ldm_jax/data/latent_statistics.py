"""Statistics of latents, summed up part by part: by them latents are brought to unit spread.

(1) mean = E[m],  std^2 = E[m^2 + s^2] - mean^2  over posteriors N(m, s^2): the moments of samples, without drawing
(2) over all channels together: the mean of the means, and std^2 = mean of E[m^2 + s^2] - (mean of the means)^2
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from jaxtyping import Float, Float64


@dataclass(frozen=True, kw_only=True)
class LatentSums:
    """What statistics are made of; those of two parts add up to those of the whole."""

    count: int
    """Positions, over all latents."""
    first: tuple[float, ...]
    """Sum of m, for each channel."""
    second: tuple[float, ...]
    """Sum of m^2 + s^2, for each channel."""

    @classmethod
    def of(cls, moments: Float[np.ndarray, "... d"]) -> "LatentSums":
        """The sums of latents from their moments: means, then log-variances."""
        rows = np.asarray(moments, np.float64).reshape(-1, moments.shape[-1])
        mean, logvar = np.split(rows, 2, axis=-1)
        second = (mean**2 + np.exp(logvar)).sum(axis=0)
        return cls(count=len(rows), first=tuple(mean.sum(axis=0).tolist()), second=tuple(second.tolist()))

    def __add__(self, other: "LatentSums") -> "LatentSums":
        """Those of both together."""
        return LatentSums(
            count=self.count + other.count,
            first=tuple(map(add, self.first, other.first)),
            second=tuple(map(add, self.second, other.second)),
        )

    def per_channel(self) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
        """Mean and spread of each channel (1)."""
        mean, second = np.asarray(self.first) / self.count, np.asarray(self.second) / self.count
        return mean, np.sqrt(second - mean**2)

    def overall(self) -> tuple[float, float]:
        """Mean and spread over all channels (2)."""
        mean, second = np.mean(self.first) / self.count, np.mean(self.second) / self.count
        return float(mean), float(np.sqrt(second - mean**2))

    def as_json(self) -> dict[str, Any]:
        """The statistics for people and other programs."""
        mean, std = self.per_channel()
        overall = dict(zip(("mean", "std"), self.overall(), strict=True))
        return {"per_channel": {"mean": mean.tolist(), "std": std.tolist()}, "global": overall}


def sum_latents(parts: Iterable[Float[np.ndarray, "... d"]]) -> LatentSums:
    """The sums over batches of moments, of which there is at least one."""
    return reduce(add, map(LatentSums.of, parts))
