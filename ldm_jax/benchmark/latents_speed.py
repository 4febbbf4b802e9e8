"""What encoding once is worth: steps of the second stage from latents and from pictures, and what encoding costs.

On one experiment, with parameters as they are drawn, for none of this depends on what they are:

(1) encode rate = pictures / seconds of writing a set of latents of them, its encoder compiled before
(2) size of a picture = bytes of the shards / pictures
(3) pictures a second in training, of steps that each encode their batch, and of steps that read it, in turn
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ldm_jax import sharding
from ldm_jax.benchmark.circumstances import circumstances
from ldm_jax.benchmark.statistics import Spread, ratio_of, spread_of
from ldm_jax.config import Experiment
from ldm_jax.data.latent_shards import Share
from ldm_jax.data.latent_source import LatentSource, open_latents
from ldm_jax.data.memory import MemorySource
from ldm_jax.data.selection import Selection
from ldm_jax.data.source import Source
from ldm_jax.training.latent_factory import make_factory
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.program import diffusion_program, jit_step
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Batch
from ldm_jax.training.workspace import Workspace, open_workspace

PICTURES, STEPS = 2048, 20


class Report(NamedTuple):
    """What was measured."""

    encode_rate: float
    """Pictures a second (1), with their mirror images where the experiment has them."""
    bytes_per_picture: float
    """The same (2)."""
    from_pictures: Spread
    """Pictures a second (3)."""
    from_latents: Spread
    """Pictures a second (3)."""
    ratio: Spread
    """Of the second to the first, in the same round."""


def report_latents(experiment: Experiment, *, rounds: int, as_json: bool, steps: int = STEPS) -> str:
    """Measure an experiment.

    Args:
        experiment: what is trained; what it starts from is left out.
        rounds: how often each side takes `steps` steps.
        as_json: for programs.
        steps: in a round of one side.

    Raises:
        UserError: its data are missing, or it cannot be trained from nothing.
    """
    data = replace(experiment.data, cache_latents=False, latents=None)
    first = replace(experiment.first_stage, run=None)
    experiment = replace(experiment, start=None, first_stage=first, data=data)
    with tempfile.TemporaryDirectory(prefix="ldm-latents-") as folder:
        work = open_workspace(experiment, Path(folder) / "run")
        chosen = Selection(work.train, range(min(PICTURES, len(work.train))))
        report = _measure(replace(work, train=chosen), Path(folder), rounds, steps)
    known = circumstances(pictures=len(chosen), steps_per_round=steps, rounds=rounds, devices=work.mesh.size)
    return _as_json(experiment, report, known) if as_json else _as_markdown(experiment, report, known)


def _measure(work: Workspace, folder: Path, rounds: int, steps: int) -> Report:
    params = sharding.place(work.mesh, jax.jit(work.model.init_autoencoder)(work.root))
    latents, rate = _encode(work, params, folder)
    reader = LatentReader(work, params)
    sides = (_Side(work, params, reader.train_batches(0)), _Side(work, params, _batches(work, latents)))
    for side in sides:
        side.seconds(2)  # compiles
    pictures, read = zip(*([side.seconds(steps) for side in sides] for _ in range(rounds)), strict=True)
    size = work.experiment.training.batch_size * steps
    return Report(
        rate,
        latents.manifest.size / len(latents),
        spread_of([size / seconds for seconds in pictures]),
        spread_of([size / seconds for seconds in read]),
        ratio_of(pictures, read),
    )


def _encode(work: Workspace, params: dict[str, Any], folder: Path) -> tuple[LatentSource, float]:
    """The training pictures as latents, and how many were encoded a second."""
    size = work.experiment.first_stage.training.batch_size
    factory = make_factory(work.experiment, work.mesh, params, batch_size=size)
    factory.write(Selection(work.train, range(1)), folder / "warm", Share())
    began = time.perf_counter()
    factory.write(work.train, folder / "train", Share())
    return open_latents(folder / "train"), len(work.train) / (time.perf_counter() - began)


def _batches(work: Workspace, source: Source) -> Iterator[Batch]:
    return work.train_batches(MemorySource(source), work.experiment.training, "diffusion", 0)


class _Side:
    """A training that goes on from round to round."""

    def __init__(self, work: Workspace, params: dict[str, Any], batches: Iterator[Batch]) -> None:
        program = diffusion_program(work.model, work.experiment, work.mesh)
        frozen = params | work.model.init_latent()
        shardings = sharding.state_shardings(work.mesh, jax.eval_shape(program.init, work.root, frozen, {}))
        self.state: TrainState = jax.jit(program.init, out_shardings=shardings)(work.root, frozen, {})
        self.step, self.batches, self.root = jit_step(program.step, shardings, work.mesh), batches, work.root

    def seconds(self, steps: int) -> float:
        """How long some steps take, input included."""
        began = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, next(self.batches), self.root)
            jax.block_until_ready(metrics)
        return time.perf_counter() - began


def _as_markdown(experiment: Experiment, report: Report, known: dict[str, Any]) -> str:
    lines = [f"# Latents of {experiment.name}", "", *(f"- {name}: {value}" for name, value in known.items()), ""]
    lines += ["| | |", "| --- | --- |", f"| encode rate, pictures/s | {report.encode_rate:.0f} |"]
    lines += [f"| size of a picture | {report.bytes_per_picture / 1024:.2f} KiB |"]
    lines += [f"| training from pictures, pictures/s (quartiles) | {_told(report.from_pictures, '.0f')} |"]
    lines += [f"| training from latents, pictures/s (quartiles) | {_told(report.from_latents, '.0f')} |"]
    return "\n".join([*lines, f"| ratio of the two | {_told(report.ratio, '.2f')} |", ""])


def _told(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.lower:{form}} to {spread.upper:{form}})"


def _as_json(experiment: Experiment, report: Report, known: dict[str, Any]) -> str:
    told = {name: value._asdict() if isinstance(value, Spread) else value for name, value in report._asdict().items()}
    return json.dumps({"experiment": experiment.name, "circumstances": known, **told})
