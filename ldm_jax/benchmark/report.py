"""What is written of a benchmark: Markdown for people, JSON for programs, and a plot.

(1) images a second and device = batch / median seconds; on a CPU the whole of it is one device
(2) MFU = floating-point operations / (median seconds * peak of the device in bfloat16), where the peak is known
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_jax.benchmark.comparison import Measured, Outcome
from ldm_jax.benchmark.statistics import Spread, ratio_of, spread_of
from ldm_jax.benchmark.task import Task
from ldm_jax.chips import chip_of
from ldm_jax.interop.cases.comparison import as_dict

_GIB = 2**30
_HEADER = (
    *("side", "median s (quartiles)", "time of ldm_jax / its", "images/s per device", "TFLOP/s", "MFU"),
    *("peak memory, while running, GiB", "compile s"),
)


@dataclass(frozen=True)
class Entry:
    """A task and what came out of it."""

    task: Task
    description: str
    outcome: Outcome


@dataclass(frozen=True)
class Figures:
    """The figures of one side of a task; None where there is none."""

    name: str
    time: Spread
    ratio: Spread | None
    """Our time over this side's, round by round; None for our own."""
    images_per_second: float
    flops_per_second: float
    mfu: float | None
    peak_memory: int | None
    running_memory: int | None
    compile_seconds: float | None


def figures_of(entry: Entry) -> list[Figures]:
    """The figures of all sides that were timed."""
    ours = entry.outcome.sides[0] if entry.outcome.sides else None
    return [_figures(entry, side, ours) for side in entry.outcome.sides if ours is not None and side.seconds]


def _figures(entry: Entry, side: Measured, ours: Measured) -> Figures:
    facts, time = entry.outcome.facts, spread_of(side.seconds)
    chip, rate = chip_of(facts["device"]), facts["flops"] / time.median
    is_ours = side is ours
    return Figures(
        name=side.name,
        time=time,
        ratio=None if is_ours else ratio_of(ours.seconds, side.seconds),
        images_per_second=entry.task.batch_size / time.median,  # (1)
        flops_per_second=rate,
        mfu=None if chip is None else rate / chip.peak_flops,  # (2)
        peak_memory=side.peak_memory,
        running_memory=side.running_memory,
        compile_seconds=facts["compile_seconds"] if is_ours else _compilation(side),
    )


def _compilation(side: Measured) -> float | None:
    """Compilation of a side that compiles in its first call; None for one that does not compile."""
    return side.first_seconds if "compile" in side.name else None


def as_markdown(entries: Sequence[Entry], circumstances: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = ["# ldm_jax beside PyTorch", "", *(f"- {name}: {value}" for name, value in circumstances.items()), ""]
    for entry in entries:
        lines += [*_section(entry), ""]
    return "\n".join(lines)


def _section(entry: Entry) -> list[str]:
    task, outcome, facts = entry.task, entry.outcome, entry.outcome.facts
    heading = [
        f"## {task.name}: {entry.description}, {task.dtype}",
        "",
        f"{facts['num_parameters'] / 1e6:.2f} M parameters, {facts['flops'] / 1e9:.1f} GFLOP, on {facts['platform']} "
        f"({facts['device']}, {facts['cpu_devices']} devices of jax). "
        f"{_numbers(outcome)}",
        "",
    ]
    if not outcome.passed:
        return [*heading, "The numbers differ: nothing was timed."]
    rows = [_row(figures) for figures in figures_of(entry)]
    table = [" | ".join(["", *cells, ""]).strip() for cells in (_HEADER, ("---",) * len(_HEADER), *rows)]
    notes = [f"- {side.name}: {side.note}" for side in outcome.sides if side.note]
    return [*heading, f"{outcome.repeats} repeats in a round.", "", *table, *(["", *notes] if notes else [])]


def _numbers(outcome: Outcome) -> str:
    worst = max(outcome.numbers, key=lambda row: row.relative / row.tolerance)
    verdict = "Equal" if outcome.passed else "NOT equal"
    return (
        f"{verdict} in {len(outcome.numbers)} results; largest relative difference {worst.relative:.1e} "
        f"({worst.name}), tolerance {worst.tolerance:.0e}."
    )


def _row(figures: Figures) -> tuple[str, ...]:
    peak, running = (_cell(bytes_, 1 / _GIB) for bytes_ in (figures.peak_memory, figures.running_memory))
    return (
        figures.name,
        _spread(figures.time),
        "" if figures.ratio is None else _spread(figures.ratio),
        f"{figures.images_per_second:.3g}",
        f"{figures.flops_per_second / 1e12:.3g}",
        "no peak known" if figures.mfu is None else f"{100 * figures.mfu:.1f} %",
        f"{peak}, {running}",
        _cell(figures.compile_seconds),
    )


def _cell(value: float | int | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value * unit:.2f}"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.3g} ({spread.lower:.3g} to {spread.upper:.3g})"


def as_json(entries: Sequence[Entry], circumstances: Mapping[str, Any]) -> str:
    """The same for programs, with the seconds of every round."""
    tasks = [_as_dict(entry) for entry in entries]
    passed = all(entry.outcome.passed for entry in entries)
    return json.dumps({"passed": passed, "circumstances": circumstances, "tasks": tasks}, indent=1)


def _as_dict(entry: Entry) -> dict[str, Any]:
    task, outcome = entry.task, entry.outcome
    figures = {f.name: dataclasses.asdict(f) for f in figures_of(entry)}
    sides = [{**dataclasses.asdict(side), "figures": figures.get(side.name)} for side in outcome.sides]
    return {
        "task": task.name,
        "description": entry.description,
        "batch_size": task.batch_size,
        "dtype": task.dtype,
        "facts": dict(outcome.facts),
        "passed": outcome.passed,
        "numbers": [as_dict(row) for row in outcome.numbers],
        "repeats": outcome.repeats,
        "sides": sides,
    }


def draw_times(entries: Sequence[Entry], path: Path) -> None:
    """A plot of each task's time as a share of every other side's, with quartiles; a line at 1 is as fast."""
    from matplotlib.figure import Figure  # a second of import that only this needs

    bars = [(f"{e.task.name}\nbeside {f.name}", f.ratio) for e in entries for f in figures_of(e) if f.ratio is not None]
    figure = Figure(figsize=(8, 1.6 + 0.6 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    for i, (_, ratio) in enumerate(bars):
        errors = [[ratio.median - ratio.lower], [ratio.upper - ratio.median]]
        axes.barh(i, ratio.median, xerr=errors, color="tab:blue" if ratio.median <= 1 else "tab:orange")
        axes.text(0.02, i, f"{ratio.median:.2f}", va="center", color="white")
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="time of ldm_jax / time of the other, median and quartiles of rounds; below 1 is faster")
    figure.savefig(path, dpi=110)
