"""Figures of a report as SVG: metrics over steps, and scores with their intervals, one colour a run."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

MAX_POINTS = 1000
"""Points of a curve: of more, every second, third, ... is drawn."""
_STYLES = ("-", "--", ":")


def draw_curves(title: str, curves: Mapping[str, Mapping[str, Points]]) -> bytes:
    """Curves as SVG: for each run, its curves by name; a run has a colour and a name a style of line."""
    figure, axes = _axes(title)
    names = list(dict.fromkeys(name for of_run in curves.values() for name in of_run))
    for i, (run, of_run) in enumerate(curves.items()):
        for name, points in of_run.items():
            x, y = zip(*thinned(points), strict=True)
            label = run if len(names) == 1 else f"{run}: {name.replace('_', ' ')}"
            style, marker = _STYLES[names.index(name) % len(_STYLES)], "." if len(points) < 30 else ""
            axes.plot(x, y, style, marker=marker, color=f"C{i % 10}", linewidth=1.2, label=label)
    values = [y for of_run in curves.values() for points in of_run.values() for _, y in points]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    return _finished(figure, axes)


def draw_intervals(name: str, scores: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A score of several runs as SVG, each with its interval, and the floor where there is one."""
    figure, axes = _axes(name)
    for i, (run, score) in enumerate(scores.items()):
        value, low, high = score["value"], score.get("low"), score.get("high")
        axes.plot([i], [value], "o", color=f"C{i % 10}", label=run)
        if isinstance(low, float) and isinstance(high, float):
            axes.plot([i, i], [low, high], "-", color=f"C{i % 10}", linewidth=3, alpha=0.5)
        if isinstance(score.get("floor"), float):
            axes.plot([i - 0.2, i + 0.2], [score["floor"]] * 2, "--", color="0.5", linewidth=1)
    axes.set_xticks([])
    axes.set_xlim(-0.7, len(scores) - 0.3)
    return _finished(figure, axes)


def thinned(points: Points) -> Points:
    """At most `MAX_POINTS` of the points, the last one among them; what is not finite is left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)] or [(points[0][0], 0.0)]
    every = -(-len(finite) // MAX_POINTS)
    return list(itertools.islice(reversed(finite), 0, None, every))[::-1]


def _axes(title: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # a second of import that only this needs

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    return figure, axes


def _finished(figure: "Figure", axes: "Axes") -> bytes:
    """The same bytes for the same figure."""
    import matplotlib

    axes.legend(fontsize=7)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ldm_jax"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    content = file.getvalue()
    return content[content.index(b"<svg") :]  # without the link to a DTD
