"""Metrics of a run: metrics.jsonl and TensorBoard while it trains, and the loss curve drawn from them."""

import contextlib
import gc
import json
import logging
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place, is_local
from ldm_jax.files.whole_files import write_atomically
from ldm_jax.training import processes
from ldm_jax.training.board import Board
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def read_metrics(path: Place) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; one that is damaged, or the last one if a kill has cut it, is left out."""
    return list(_lines_of(path))


def _lines_of(path: Place) -> Iterator[dict[str, Any]]:
    """As `read_metrics`, one after the other: all of them together may take more memory than the run."""
    if path.exists():
        with path.open("rb") as file:
            yield from (values for line in file if (values := _parsed(line)) is not None)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The values of a line that is as `MetricsLog` writes it."""
    try:
        values = parse_json(line)
        numbers = {name: value for name, value in values.items() if name != "stage"}
    except (ValueError, AttributeError):
        return None
    whole = isinstance(values.get("stage"), str) and isinstance(values.get("step"), int)
    return values if whole and all(isinstance(value, int | float) for value in numbers.values()) else None


class MetricsLog:
    """Writes the metrics of one stage, going on where a checkpoint stands; the first process does it."""

    def __init__(self, run: RunFolder, stage: str, start_step: int) -> None:
        """Open the log; lines of this stage behind `start_step` are dropped, for they will be written again."""
        self.stage = stage
        self._path = run.metrics_file
        self._writes = processes.is_first()
        self._file, self._board = None, None
        if not self._writes:
            return
        kept = (m for m in _lines_of(self._path) if m["stage"] != stage or m["step"] <= start_step)
        self._lines = [json.dumps(m) + "\n" for m in kept]
        self._is_written = False
        self.flush()
        if is_local(run.path):
            self._file, self._lines = _open_to_append(self._path), []
        self._board = Board(Path(run.path) / "tensorboard" / stage, start_step) if is_local(run.path) else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line for `step`; an object store, which cannot append, gets it at the next `flush`.

        Raises:
            UserError: it cannot be written.
        """
        if not self._writes:
            return
        line = json.dumps({"stage": self.stage, "step": step, **values}) + "\n"
        if self._file is not None:
            with self._writing():
                self._file.write(line)
        else:
            self._lines.append(line)
            self._is_written = False
        if self._board is not None:
            self._board.write(step, values)

    def flush(self) -> None:
        """Have every line where the run lies; on a file system it is there, unless the folder has vanished.

        Raises:
            UserError: it cannot be written, or is gone.
        """
        if not self._writes:
            return
        with self._writing():
            if not self._is_written:
                write_atomically(self._path, "".join(self._lines))
                self._is_written = True
            elif self._file is not None and not self._path.exists():
                raise FileNotFoundError("it has vanished")

    def close(self) -> None:
        """Flush and close; raises what `write` raises."""
        if self._board is not None:
            self._board.close()
        if self._file is None:
            self.flush()
            return
        with self._writing():
            self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self._path} ({error}); check the permissions and the free space, then run the same "
                "command again"
            ) from error


_STYLES = {"loss": "-", "heldout_loss": ".-"}
_MOST_POINTS = 4000
"""Of a curve: more are not seen, and take memory for each drawing."""


def _open_to_append(path: Place) -> TextIO:
    """Whoever watches a run sees each line at once."""
    return Path(path).open("a", buffering=1)


def draw_losses(run: RunFolder) -> None:
    """Draw training and held-out loss of every stage into loss.png."""
    curves = _loss_curves(_lines_of(run.metrics_file))
    with _cycles_freed(), (run.path / "loss.png").open("wb") as file:
        _figure_of(curves).savefig(file, dpi=110, format="png")


@contextlib.contextmanager
def _cycles_freed() -> Iterator[None]:
    """Free what is made and dropped inside, cycles of references included.

    A figure is such cycles, which hold 10 MiB; a dozen would gather before Python looks for old ones (docs/scale.md).
    As long as it does not look at all they stay young, and young ones are found in no time, whatever a program holds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if was_enabled:
            gc.enable()


Curve: TypeAlias = tuple[array, array]
"""Steps and values."""


def _loss_curves(metrics: Iterable[dict[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Of each stage the losses that it has, without the rest of the lines."""
    curves: dict[str, dict[str, Curve]] = {}
    for line in metrics:
        stage = curves.setdefault(line["stage"], {name: (array("q"), array("d")) for name in _STYLES})
        for name, (steps, values) in stage.items():
            if name in line:
                steps.append(line["step"])
                values.append(line[name])
    return curves


def _figure_of(curves: dict[str, dict[str, Curve]]) -> Any:  # a matplotlib Figure
    from matplotlib.figure import Figure  # a second of import that only this needs

    figure = Figure(figsize=(6 * max(len(curves), 1), 4), layout="constrained")
    for i, (stage, losses) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), i + 1)
        for name, (steps, values) in losses.items():
            if steps:
                every = slice(None, None, -(-len(steps) // _MOST_POINTS))
                axes.plot(steps[every], values[every], _STYLES[name], linewidth=0.8, label=name.replace("_", " "))
        axes.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        axes.legend()
    return figure
