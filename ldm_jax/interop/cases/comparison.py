"""How close two results are: the rows of a parity report.

(1) error = max |ours - reference|,  relative = error / max(floor, max |reference|), where the floor is 1 for outputs
    a result passes when the relative error is at most its tolerance; integers must be equal
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FORWARD = 1e-4
"""Tolerance of one forward pass."""
RUN = 2e-3
"""Tolerance of a whole sampling or training run."""


class Comparison(NamedTuple):
    """One output of ours beside the reference's."""

    name: str
    error: float
    """Largest absolute difference (1); infinite where the shapes differ or a number is not finite."""
    relative: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is close enough."""
        return self.relative <= self.tolerance


def compare(
    name: str, ours: np.ndarray, reference: np.ndarray, tolerance: float, note: str = "", floor: float = 1.0
) -> Comparison:
    """Compare two arrays (1); integers have no tolerance."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.shape != reference.shape:
        note = f"shape {list(ours.shape)} instead of {list(reference.shape)}"
        return Comparison(name, np.inf, np.inf, tolerance, note)
    if np.issubdtype(reference.dtype, np.integer):
        tolerance = 0.0
    difference = np.abs(ours.astype(np.float64) - reference.astype(np.float64))
    error = float(np.max(difference, initial=0.0)) if np.isfinite(difference).all() else np.inf
    scale = max(floor, float(np.max(np.abs(reference.astype(np.float64)), initial=0.0)))
    return Comparison(name, error, error / scale, tolerance, note)


def as_table(rows: Sequence[Comparison], heading: str = "output") -> str:
    """A table for people, one line for each of what the heading names."""
    width = max(len(heading), *(len(row.name) for row in rows))
    lines = [f"{heading:{width}}  {'max |error|':>11}  {'relative':>9}  {'tolerance':>9}"]
    for row in rows:
        verdict = ("ok" if row.passed else "DIFFERS") + (f"  ({row.note})" if row.note else "")
        lines.append(f"{row.name:{width}}  {row.error:11.2e}  {row.relative:9.1e}  {row.tolerance:9.1e}  {verdict}")
    return "\n".join(lines)


def as_dict(row: Comparison) -> dict[str, Any]:
    """A row for programs: numbers that are not finite as strings."""
    values = row._asdict().items()
    finite = {key: str(x) if isinstance(x, float) and not np.isfinite(x) else x for key, x in values}
    return {**finite, "passed": row.passed}


def as_json(rows: Sequence[Comparison]) -> str:
    """The same as the table for programs."""
    return json.dumps({"passed": all(row.passed for row in rows), "outputs": [as_dict(row) for row in rows]})
