"""Metrics of a run: metrics.jsonl and TensorBoard while it trains, and the loss curve drawn from them."""

import json
import logging
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from ldm_jax.training import processes
from ldm_jax.training.checkpoints import write_atomically
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; one that is damaged, or the last one if a kill has cut it, is left out."""
    if not path.exists():
        return []
    return [values for line in path.read_bytes().splitlines() if (values := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The values of a line that is as `MetricsLog` writes it."""
    try:
        values = json.loads(line)
        numbers = {name: value for name, value in values.items() if name != "stage"}
    except (ValueError, AttributeError, RecursionError):
        return None
    whole = isinstance(values.get("stage"), str) and isinstance(values.get("step"), int)
    return values if whole and all(isinstance(value, int | float) for value in numbers.values()) else None


class MetricsLog:
    """Writes the metrics of one stage, going on where a checkpoint stands; the first process does it."""

    def __init__(self, run: RunFolder, stage: str, start_step: int) -> None:
        """Open the log; lines of this stage behind `start_step` are dropped, for they will be written again."""
        self.stage = stage
        self._file, self._board = None, None
        if not processes.is_first():
            return
        kept = [m for m in read_metrics(run.metrics_file) if m["stage"] != stage or m["step"] <= start_step]
        write_atomically(run.metrics_file, "".join(json.dumps(m) + "\n" for m in kept))
        self._file = run.metrics_file.open("a", buffering=1)
        self._board = SummaryWriter(str(run.path / "tensorboard" / stage), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line for `step`."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        for part in (self._file, self._board):
            if part is not None:
                part.close()


def draw_losses(run: RunFolder) -> None:
    """Draw training and held-out loss of every stage into loss.png."""
    from matplotlib.figure import Figure  # a second of import that only this needs

    metrics = read_metrics(run.metrics_file)
    stages = list(dict.fromkeys(m["stage"] for m in metrics))
    figure = Figure(figsize=(6 * max(len(stages), 1), 4), layout="constrained")
    for i, stage in enumerate(stages):
        axes = figure.add_subplot(1, len(stages), i + 1)
        for name, style in (("loss", "-"), ("heldout_loss", ".-")):
            points = [(m["step"], m[name]) for m in metrics if m["stage"] == stage and name in m]
            if points:
                axes.plot(*zip(*points, strict=True), style, linewidth=0.8, label=name.replace("_", " "))
        axes.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        axes.legend()
    figure.savefig(run.path / "loss.png", dpi=110)
