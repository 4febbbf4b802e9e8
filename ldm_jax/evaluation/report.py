"""Scores for people and for programs: a table, and a file that is its own manifest, to compute them again by."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from ldm_jax import sharding
from ldm_jax.config import MeshConfig
from ldm_jax.errors import UserError
from ldm_jax.evaluation.command import EvaluateCommand
from ldm_jax.evaluation.scores import Score
from ldm_jax.files.whole_files import write_atomically
from ldm_jax.manifest import Manifest, as_text, changes, make_manifest

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


def as_record(scores: Sequence[Score], command: EvaluateCommand, about: Mapping[str, Any]) -> Manifest:
    """The manifest of scores, with what they are of; numbers that JSON lacks are words."""
    mesh = dict(sharding.make_mesh(MeshConfig(), jax.local_devices()).shape)
    record = make_manifest("scores", config=command_to_json(command), seed=command.seed, mesh=mesh, **about)
    values = [{name: _plain(value) for name, value in asdict(score).items()} for score in scores]
    return record | {"results": {"scores": values}}


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write the file whole or not at all; raises OSError where that fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, as_text(record))


def command_to_json(command: EvaluateCommand) -> dict[str, Any]:
    """The flags of an evaluation, with paths that hold wherever they are read, and without how processes meet."""
    values = {name: value for name, value in asdict(command).items() if name != "distributed"}
    for name in ("target", "reference", "out", "text_weights"):
        values[name] = None if values[name] is None else str(Path(values[name]).absolute())
    files = {"weights": command.weights, "lpips_files": command.lpips_files}
    return values | {name: [str(Path(path).absolute()) for path in paths] for name, paths in files.items()}


def command_from_json(values: Mapping[str, Any]) -> EvaluateCommand:
    """Inverse of `command_to_json`; raises TypeError for flags that are not known."""
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return EvaluateCommand(**given)


def require_same(what: str, known: Any, found: Any) -> None:
    """Refuse to score other pictures or networks than those of a record; where they lie does not matter.

    Raises:
        UserError: naming what differs.
    """
    old, new = (json.loads(json.dumps(values)) for values in (known, found))
    if changed := [line for line in changes("", _without_paths(old), _without_paths(new))]:
        listing = "\n  ".join(line.lstrip(".") for line in changed)
        raise UserError(
            f"{what} of this score are others now:\n  {listing}\nrestore them, or score them anew: ldm evaluate"
        )


def _without_paths(values: Any) -> Any:
    return {k: v for k, v in values.items() if k != "path"} if isinstance(values, dict) else values


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
