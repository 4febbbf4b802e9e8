"""What is said of repeated measurements: median and quartiles, and the ratio of two that were taken in turn.

(1) ratio = median over rounds i of ours[i] / theirs[i]: what slows the machine down for a while slows both of a round
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldm_jax.errors import UserError


class Spread(NamedTuple):
    """The middle of some measurements, and the middle half around it."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles, between neighbours by linear interpolation.

    Raises:
        UserError: there are no values.
    """
    if not values:
        raise UserError("there is nothing to take a median of: no round was measured; use --rounds 1 or more")
    lower, median, upper = np.percentile(np.asarray(values, np.float64), [25, 50, 75])
    return Spread(float(median), float(lower), float(upper))


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Median and quartiles of the ratios of each round (1).

    Raises:
        UserError: the two have another number of rounds, or none.
    """
    if len(ours) != len(theirs):
        raise UserError(f"{len(ours)} rounds of one side and {len(theirs)} of the other cannot be compared in turn")
    return spread_of([one / other for one, other in zip(ours, theirs, strict=True)])
