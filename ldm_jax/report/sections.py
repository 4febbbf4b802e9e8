"""The sections of a report: what the runs are, how they differ, how they learned, their scores and their pictures."""

import datetime
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ldm_jax.config import to_dict
from ldm_jax.manifest import changed_circumstances
from ldm_jax.report.document import Block, Folded, Heading, Paragraph, Picture, Table
from ldm_jax.report.figures import draw_curves, draw_intervals
from ldm_jax.report.gather import RunFacts, flat_config

_TOGETHER = {"loss": ("loss", "heldout_loss")}
"""Metrics that are drawn in one figure."""


def report_blocks(runs: Sequence[RunFacts]) -> list[Block]:
    """The whole report."""
    today = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    sections = (overview, config_differences, circumstance_differences, curves, scores, pictures, configs)
    return [Paragraph(f"Written {today}."), *(block for section in sections for block in section(runs))]


def overview(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """One row for each run."""
    yield Heading("Runs")
    head = ("run", "experiment", "seed", "data", "started", "first stage", "second stage", "held-out loss", "devices")
    yield Table(head, [_overview_row(run) for run in runs])


def _overview_row(run: RunFacts) -> tuple[str, ...]:
    experiment, manifest = run.experiment, run.manifest
    known = manifest.get("data", {}).get("train", {})
    second = experiment.training.num_steps
    wanted = {"autoencoder": experiment.first_stage.training.num_steps, experiment.second_stage: second}
    devices = manifest.get("devices", [])
    return (
        *(run.name, experiment.name, str(experiment.seed)),
        f"{known.get('name', '?')}, {known.get('num_pictures', '?')} pictures",
        manifest.get("started", "?"),
        *(f"step {_last_step(run, stage)} of {steps}" for stage, steps in wanted.items()),
        _best(run),
        f"{len(devices)} x {devices[0]}" if devices else "?",
    )


def _last_step(run: RunFacts, stage: str) -> int:
    return max((m["step"] for m in run.metrics if m["stage"] == stage), default=0)


def _best(run: RunFacts) -> str:
    """The last held-out loss of the second stage, and the lowest."""
    lines = [m for m in run.metrics if m["stage"] == run.experiment.second_stage and "heldout_loss" in m]
    found = [(m["heldout_loss"], m["step"]) for m in lines]
    if not found:
        return "-"
    return f"{found[-1][0]:.4g}, lowest {min(found)[0]:.4g} at step {min(found)[1]}"


def config_differences(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """The fields of the configurations that are not the same in all runs."""
    if len(runs) < 2:
        return
    yield Heading("Configurations")
    flat = [flat_config(run.experiment) for run in runs]
    names = dict.fromkeys(name for config in flat for name in config)
    rows = [(name, *(config.get(name, "-") for config in flat)) for name in names]
    different = [row for row in rows if len(set(row[1:])) > 1]
    if different:
        yield Table(("field", *(run.name for run in runs)), different)
    else:
        yield Paragraph("The configurations are the same in every field.")


def circumstance_differences(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """How the others were made under other circumstances than the first."""
    if len(runs) < 2:
        return
    yield Heading("Circumstances")
    rows = [(run.name, line) for run in runs[1:] for line in changed_circumstances(runs[0].manifest, run.manifest)]
    if rows:
        yield Table(("run", f"differs from {runs[0].name}"), rows)
    else:
        yield Paragraph("Versions, machine, flags and devices are the same, as far as the manifests tell.")


def curves(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """Every metric of every stage over its steps, all runs in one figure."""
    for stage in dict.fromkeys(m["stage"] for run in runs for m in run.metrics):
        yield Heading(f"Curves: {stage}")
        found = dict.fromkeys(name for run in runs for m in run.metrics if m["stage"] == stage for name in m)
        single = [name for name in found if name not in ("stage", "step", *sum(_TOGETHER.values(), ()))]
        for title, names in (*_TOGETHER.items(), *((name, (name,)) for name in single)):
            drawn = {run.name: part for run in runs if (part := _curves_of(run, stage, names))}
            if drawn:
                svg = draw_curves(f"{stage}: {title.replace('_', ' ')}", drawn)
                yield Picture(f"{stage}_{_slug(title)}.svg", svg, f"{stage}: {', '.join(names)}".replace("_", " "))


def _curves_of(run: RunFacts, stage: str, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    lines = [m for m in run.metrics if m["stage"] == stage]
    found = {name: [(float(m["step"]), float(m[name])) for m in lines if name in m] for name in names}
    return {name: points for name, points in found.items() if any(math.isfinite(y) for _, y in points)}


def scores(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """Every score with its interval, those of one name below each other, and drawn where several runs have it."""
    yield Heading("Scores")
    rows = [(score["name"], run.name, file, score) for run in runs for file, score in run.scores]
    if not rows:
        yield Paragraph("There are none yet: ldm evaluate RUN")
        return
    ordered = sorted(rows, key=lambda row: row[0])  # stable: the runs stay in their order
    head = ("score", "run", "value", "95 % interval", "n", "reference", "halves", "network", "file")
    yield Table(head, [_score_row(*row) for row in ordered])
    for name in dict.fromkeys(row[0] for row in ordered):
        drawn = {f"{run} {file}": score for other, run, file, score in ordered if other == name}
        if len(drawn) > 1 and all(isinstance(score["value"], float | int) for score in drawn.values()):
            caption = f"{name}: value, 95 % interval, and dashed the distance of the reference's halves"
            yield Picture(f"score_{_slug(name)}.svg", draw_intervals(name, drawn), caption)


def _score_row(name: str, run: str, file: str, score: dict[str, Any]) -> tuple[str, ...]:
    low, high = _number(score.get("low")), _number(score.get("high"))
    return (
        *(name, run, _number(score["value"]), "-" if low == "-" else f"{low} to {high}"),
        *(_number(score.get(key)) for key in ("num_samples", "num_reference", "floor")),
        *(str(score.get("network", "-")), file),
    )


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "-" if value is None else str(value)


def pictures(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """The newest grids of each run."""
    for run in runs:
        if run.pictures:
            yield Heading(f"Pictures: {run.name}")
        for file in run.pictures:
            yield Picture(f"{_slug(run.name)}_{_slug(file.stem)}.png", file.read_bytes(), f"{run.name}: {file.stem}")


def configs(runs: Sequence[RunFacts]) -> Iterator[Block]:
    """Configuration and manifest of each run in full."""
    yield Heading("In full")
    for run in runs:
        yield Folded(f"{run.name}: configuration", json.dumps(to_dict(run.experiment), indent=1))
        yield Folded(
            f"{run.name}: manifest", json.dumps({k: v for k, v in run.manifest.items() if k != "config"}, indent=1)
        )


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
