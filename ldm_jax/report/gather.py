"""What a run has left in its folder, read for a report: configuration, manifest, metrics, scores and pictures."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm_jax.config import Experiment, to_dict
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place
from ldm_jax.manifest import Manifest
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as far as a report tells of it."""

    name: str
    """What it is called among the others."""
    path: Place
    experiment: Experiment
    manifest: Manifest
    """Empty where it is missing or damaged."""
    metrics: Sequence[dict[str, Any]]
    scores: Sequence[tuple[str, dict[str, Any]]]
    """Each with the file that it is from."""
    pictures: Sequence[Place]


def gather_runs(paths: Sequence[Place]) -> list[RunFacts]:
    """The facts of runs, under names that tell them apart.

    Raises:
        UserError: one is no run, or is given twice.
    """
    return [_gather(name, path) for name, path in zip(distinct_names(paths), paths, strict=True)]


def distinct_names(paths: Sequence[Place]) -> list[str]:
    """The last part of each path, or as many as it takes to tell them apart; raises UserError for one given twice."""
    parts = [[part for part in str(path.resolve()).split("/") if part] for path in paths]
    if twice := next((path for i, path in enumerate(paths) if parts[i] in parts[:i]), None):
        raise UserError(f"the run {twice} is given twice; leave it out")
    count = 1
    while len({tuple(p[-count:]) for p in parts}) < len(parts):
        count += 1
    return ["/".join(p[-count:]) for p in parts]


def _gather(name: str, path: Place) -> RunFacts:
    run = RunFolder(path)
    experiment, metrics = run.load_config(), read_metrics(run.metrics_file)
    return RunFacts(
        name=name,
        path=path,
        experiment=experiment,
        manifest=run.read_manifest(),
        metrics=metrics,
        scores=_scores(path / "evaluation"),
        pictures=_pictures(run),
    )


def _scores(folder: Place) -> list[tuple[str, dict[str, Any]]]:
    """The scores of every file below a folder that has some; what is no file of scores is passed over."""
    if not folder.exists():
        return []
    files = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")], key=str)
    return [(str(file)[len(str(folder)) + 1 :], score) for file in files for score in _scores_of(file)]


def _scores_of(file: Place) -> list[dict[str, Any]]:
    try:
        record = parse_json(file.read_text(encoding="utf-8"))
        scores = record["results"]["scores"] if record.get("kind") == "scores" else record["scores"]
        return [score for score in scores if isinstance(score["name"], str) and "value" in score]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def _pictures(run: RunFolder) -> list[Place]:
    """The newest grid of each kind."""
    newest: dict[tuple[str, str], Place] = {}
    folders = [folder for folder in (run.samples, run.path / "evaluation") if folder.exists()]
    for file in sorted((file for folder in folders for file in folder.glob("*.png")), key=str):
        newest[file.parent.name, re.sub(r"_\d+$", "", file.stem)] = file
    return list(newest.values())


def flat_config(experiment: Experiment) -> dict[str, str]:
    """Every field of an experiment by its path, as text."""
    return dict(_flat("", to_dict(experiment)))


def _flat(prefix: str, values: Any) -> list[tuple[str, str]]:
    if not isinstance(values, dict):
        return [(prefix, json.dumps(values))]
    path = f"{prefix}." if prefix else ""
    return [pair for name, value in values.items() for pair in _flat(f"{path}{name}", value)]
