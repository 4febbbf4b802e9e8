"""`ldm benchmark`: the flags, and the way from them to a report."""

import importlib.util
import json
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ldm_jax.benchmark.circumstances import usable_cores
from ldm_jax.benchmark.service import use_cores
from ldm_jax.benchmark.task import DType, Schedule, TaskName
from ldm_jax.config import Experiment, load_experiment, nearest_divisor, restore_experiment
from ldm_jax.errors import UserError

logger = logging.getLogger(__name__)

TORCH_PACKAGES = ("torch", "diffusers")


@dataclass(frozen=True, kw_only=True)
class BenchmarkCommand:
    """Time this project and PyTorch with diffusers on the same work in turn, once both are found to compute the same.

    Both take the same architecture, weights, inputs, precision, batch and optimizer, each in a process of its own. The
    report goes to stdout; status 1 if the numbers differ.
    """

    model: str = "small"
    """`small` (18 M U-Net, small autoencoders), `sd1` (Stable Diffusion 1), or a folder of diffusers: a U-Net, an
    AutoencoderKL, or a pipeline."""
    only: tuple[TaskName, ...] = ()
    """Tasks, such as --only train decode; default: all that the model has."""
    dtype: DType = "float32"
    """Numbers of convolutions and matrix products."""
    rounds: int = 7
    """How often each side is timed."""
    warmup: int = 2
    """Runs of each side before that, besides the first, whose results are compared."""
    threads: int | None = None
    """Cores that each side uses; default: all."""
    cpu_devices: int | None = None
    """Most devices of jax on a CPU, of which as many are used as divide the batch; default: one a core, as `ldm train`
    has."""
    batch_size: int | None = None
    """Batch of every task; default: the preset's, 1 for a folder."""
    latent_size: int | None = None
    """Side of the latents of a U-Net; default: that of the model."""
    image_size: int | None = None
    """Side of the pictures of an autoencoder; default: that of the model."""
    num_sample_steps: int = 50
    """Steps of DDIM."""
    torch_compile: bool = False
    """Time torch.compile too, which takes minutes to compile on a CPU."""
    out: str | None = None
    """Folder for benchmark.md, benchmark.json and benchmark.png."""
    json: bool = False
    """Print the report as JSON."""
    input: str | None = None
    """Instead: how fast one core reads the pictures and latents of a run, or of an experiment by name."""
    latents: str | None = None
    """Instead: how fast an experiment, by name, or that of a run trains from latents and from pictures, how fast it is
    encoded, and the size of a picture; its parameters are drawn."""
    baseline: str | None = None
    """Instead: the second stage of a run trained by PyTorch and diffusers on the same latents with the same settings,
    as a new run in --out, to be scored beside it."""
    seed: int = 0
    """Of the --baseline."""
    steps_per_second: float | None = None
    """With --input: steps a second that the accelerators are expected to take (`ldm plan` predicts them)."""


def run(arguments: Sequence[str], start_jax: Callable[[Experiment], None]) -> int:
    """`ldm benchmark [flags]`; 1 if the numbers differ. `start_jax` is told what is going to be trained here."""
    command = tyro.cli(BenchmarkCommand, prog="ldm benchmark", args=list(arguments))
    if command.steps_per_second is not None:
        _check_steps_per_second(command)
    if command.input is not None:
        from ldm_jax.benchmark.input_speed import report_input

        use_cores(1)
        sys.stdout.write(report_input(command.input, command.steps_per_second, as_json=command.json) + "\n")
        return 0
    if command.latents is not None:
        return _measure_latents(command, command.latents, start_jax)
    if command.baseline is not None:
        return _baseline(command.baseline, command)
    check_command(command)
    return _compare(command)


def _measure_latents(command: BenchmarkCommand, given: str, start_jax: Callable[[Experiment], None]) -> int:
    if command.rounds < 1:
        raise UserError(f"--rounds={command.rounds} must be at least 1")
    config = Path(given) / "config.json"
    experiment = restore_experiment(config) if config.exists() else load_experiment(given)
    start_jax(experiment)
    from ldm_jax.benchmark.latents_speed import report_latents

    sys.stdout.write(report_latents(experiment, rounds=command.rounds, as_json=command.json) + "\n")
    return 0


def _baseline(run: str, command: BenchmarkCommand) -> int:
    if command.out is None:
        raise UserError("--baseline RUN needs a new folder for the run that it makes: --out FOLDER")
    from ldm_jax.benchmark.baseline import train_baseline

    told = train_baseline(Path(run), Path(command.out), command.seed)
    sys.stdout.write(json.dumps({"out": command.out, **told}) + "\n")
    return 0


def _check_steps_per_second(command: BenchmarkCommand) -> None:
    if command.input is None:
        raise UserError("--steps-per-second goes with --input RUN")
    if not 0 < (command.steps_per_second or 0) < math.inf:
        raise UserError(f"--steps-per-second={command.steps_per_second} must be greater than 0, and finite")


def check_command(command: BenchmarkCommand) -> None:
    """Refuse what cannot be measured, before anything heavy is imported.

    Raises:
        UserError: naming the flag, or the packages that are missing.
    """
    for name in ("rounds", "warmup", "threads", "cpu_devices", "batch_size", "latent_size", "image_size"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}={value} must be at least 1")
    steps, timesteps = command.num_sample_steps, Schedule().num_train_timesteps
    if steps < 1 or timesteps % steps != 0:  # diffusers' DDIM would step to other times than it calls the network at
        usable = nearest_divisor(timesteps, steps)
        raise UserError(
            f"--num-sample-steps={steps} does not divide {timesteps} timesteps; nearest that does: {usable}"
        )
    cores = usable_cores()
    if command.threads is not None and command.threads > cores:
        raise UserError(f"--threads={command.threads} is more than the {cores} cores that there are")
    if missing := [name for name in TORCH_PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ldm benchmark compares with PyTorch, which needs {', '.join(missing)}: pip install -e '.[parity]'"
        )


def _compare(command: BenchmarkCommand) -> int:
    from ldm_jax.benchmark.measure import measure_all
    from ldm_jax.benchmark.report import as_json, as_markdown, draw_times

    if command.out is not None:
        Path(command.out).mkdir(parents=True, exist_ok=True)  # what cannot be written is found now
    with tempfile.TemporaryDirectory(prefix="ldm-benchmark-") as folder:
        entries, known = measure_all(command, Path(folder))
    if command.out is not None:
        out = Path(command.out)
        (out / "benchmark.md").write_text(as_markdown(entries, known))
        (out / "benchmark.json").write_text(as_json(entries, known) + "\n")
        draw_times(entries, out / "benchmark.png")
        logger.info("written to %s: benchmark.md, benchmark.json, benchmark.png", out)
    sys.stdout.write((as_json if command.json else as_markdown)(entries, known) + "\n")
    return 0 if all(entry.outcome.passed for entry in entries) else 1
