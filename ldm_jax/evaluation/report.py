"""Scores for people and for programs: a table, and a JSON file with everything it takes to compute them again."""

import datetime
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from ldm_jax.evaluation.scores import Score
from ldm_jax.files.whole_files import write_atomically

_PACKAGES = ("ldm_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
_COLUMNS = ("score", "value", "95 % interval", "n", "reference", "halves", "network")


def as_table(scores: Sequence[Score]) -> str:
    """One line for each score, and below one for the protocol of each network."""
    rows = [_COLUMNS, *(_row(score) for score in scores)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    protocols = dict.fromkeys(f"{score.network}: {score.protocol}" for score in scores)
    return "\n".join([*(line.rstrip() for line in lines), *protocols])


def _row(score: Score) -> tuple[str, ...]:
    between = "-" if score.low is None or score.high is None else f"{score.low:.5g} to {score.high:.5g}"
    return (
        score.name,
        f"{score.value:.5g}",
        between,
        str(score.num_samples),
        "-" if score.num_reference is None else str(score.num_reference),
        "-" if score.floor is None else f"{score.floor:.5g}",
        score.network,
    )


def as_record(scores: Sequence[Score], about: Mapping[str, Any]) -> dict[str, Any]:
    """Scores, what they are of, and with what they were computed; numbers that JSON lacks are words."""
    values = [{name: _plain(value) for name, value in asdict(score).items()} for score in scores]
    return {
        "scores": values,
        **about,
        "computed": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
    }


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write the file whole or not at all; raises OSError where that fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(record, indent=1) + "\n")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
