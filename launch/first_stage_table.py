"""Train a first stage by L1, with LPIPS, and against a discriminator, by several seeds, and compare what comes out.

    python launch/first_stage_table.py openmoji_kl --seeds 0 1 --folder /tmp/kl --curves /tmp/kl.png

Each loss and seed is a run of its own, trained and evaluated by `ldm`; what is finished is not done again. On stdout
comes a table in Markdown, the mean over the seeds and their standard deviation; --curves draws what the alarms watch.
"""

import argparse
import json
import logging
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ldm_jax.manifest import read_manifest

logger = logging.getLogger("first_stage_table")

WITHOUT_LPIPS = ("--first-stage.perceptual.weight", "0")
WITHOUT_DISCRIMINATOR = ("--first-stage.discriminator.weight", "0")
LOSSES = {
    "l1": (*WITHOUT_LPIPS, *WITHOUT_DISCRIMINATOR),
    "l1+lpips": WITHOUT_DISCRIMINATOR,
    "l1+lpips+discriminator": (),
}
SHORT = ("--training.num-steps", "1", "--sampling.num-sample-steps", "1")
"""A second stage in name only."""
NETWORKS = ("alexnet", "efficientnet_lite0")
PANELS = (
    ("reconstruction", "perceptual", "heldout_loss", "heldout_lpips"),
    ("generator_loss", "discriminator_loss"),
    ("verdict_real", "verdict_fake"),
    ("discriminator_accuracy",),
    ("adaptive_weight",),
    ("generator_gradient",),
    ("posterior_std", "code_usage"),
    ("kl", "perplexity"),
)
"""Metrics that are drawn together."""
ROWS = 2
"""Of panels, at most."""


def run_of(folder: Path, loss: str, seed: int) -> Path:
    """Where a run lies."""
    return folder / f"{loss}_{seed}"


def train(name: str, loss: str, seed: int, folder: Path, flags: Sequence[str]) -> dict[str, float]:
    """The scores of a run, which is trained and evaluated if it is not yet."""
    run = run_of(folder, loss, seed)
    record = run / "evaluation" / "reconstruction.json"
    if not record.is_file():
        _ldm("train", name, "--run-dir", str(run), "--seed", str(seed), *LOSSES[loss], *SHORT, *flags)
        _ldm("evaluate", str(run), "--reconstruction", "--bootstrap", "0", "--network", *NETWORKS)
    return {score["name"]: float(score["value"]) for score in read_manifest(record)["results"]["scores"]}


def _ldm(*arguments: str) -> None:
    logger.info("ldm %s", " ".join(arguments))
    command = [sys.executable, "-c", "from ldm_jax.cli import main; main()", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(scores: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Lines of Markdown: a row for each loss, with the mean and the spread over the seeds."""
    names = list(next(iter(scores.values()))[0])
    yield "| trained by | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for loss, runs in scores.items():
        cells = [_cell([run[name] for run in runs]) for name in names]
        yield f"| {loss} | " + " | ".join(cells) + " |"


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"


def draw_curves(run: Path, file: Path) -> None:
    """Draw the metrics of a first stage over its steps, a panel for each group that it has."""
    text = (run / "metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if line["stage"] == "autoencoder"]
    panels = [names for names in PANELS if any(name in line for name in names for line in lines)]
    columns = math.ceil(len(panels) / ROWS)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.6 * rows), layout="constrained")
    for place, names in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name in names:
            points: list[Any] = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), linewidth=0.9, label=name.replace("_", " "))
        axes.set(xlabel="step")
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=80)


def main() -> None:
    """Train what is not trained yet, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="an experiment with LPIPS and a discriminator, such as openmoji_kl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--folder", type=Path, required=True, help="of the runs")
    parser.add_argument("--curves", type=Path, help="PNG of the last loss and the first seed")
    known, flags = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scores = {
        loss: [train(known.name, loss, seed, known.folder, flags) for seed in known.seeds] for loss in known.losses
    }
    sys.stdout.write("\n".join(table(scores)) + "\n")
    if known.curves:
        draw_curves(run_of(known.folder, known.losses[-1], known.seeds[0]), known.curves)


if __name__ == "__main__":
    main()
