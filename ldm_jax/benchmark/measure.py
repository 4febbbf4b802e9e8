"""From the flags of `ldm benchmark` to what was measured: one task after the other, each with programs of its own."""

import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ldm_jax.benchmark.circumstances import circumstances, usable_cores
from ldm_jax.benchmark.command import BenchmarkCommand
from ldm_jax.benchmark.comparison import Side, measure
from ldm_jax.benchmark.report import Entry
from ldm_jax.benchmark.subjects import Subject, describe, find_subjects, make_inputs, resize, torch_class, write_network
from ldm_jax.benchmark.task import Task, TaskName, write_inputs

logger = logging.getLogger(__name__)

_TORCH_DEVICES = {"gpu": "cuda", "cuda": "cuda", "rocm": "cuda"}
"""PyTorch's name of the device for jax's name of the platform; its CPU for all others."""


def measure_all(command: BenchmarkCommand, folder: Path) -> tuple[list[Entry], dict[str, Any]]:
    """Measure every task of the command, with files in `folder`; what came out, and what it depends on.

    Raises:
        UserError: the model cannot be measured, or a side fails.
    """
    jax.config.update("jax_platforms", "cpu")  # of this process: an accelerator belongs to the one that measures
    known = circumstances(**_choices(command))
    subjects = find_subjects(command.model, command.only or None)
    entries = [_measure(command, name, subject, folder / name) for name, subject in subjects.items()]
    versions = entries[0].outcome.facts["versions"]
    return entries, {**known, "versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def _choices(command: BenchmarkCommand) -> dict[str, Any]:
    return {
        "threads": command.threads or usable_cores(),
        "rounds": f"{command.rounds}, in turn, every other one in the other order",
        "warm-up": f"the compared results, {command.warmup} runs of each side, and one before each that is timed",
        "optimizer": "AdamW, clipping by global norm, moving average of the parameters, on both sides",
    }


def _measure(command: BenchmarkCommand, name: TaskName, subject: Subject, folder: Path) -> Entry:
    folder.mkdir()
    size = command.latent_size if subject.is_unet else command.image_size
    subject = resize(name, subject, command.batch_size, size)
    task = _write_task(command, name, subject, folder)
    sides = sides_of(command, task, folder / "task.json")
    logger.info("%s: %s", name, describe(subject.setting, None))
    outcome = measure(sides, folder, tolerance=task.tolerance, rounds=command.rounds, warmup=command.warmup)
    shutil.rmtree(folder)  # the weights of a large preset are gigabytes for each task
    if not outcome.passed:
        logger.error("%s: the numbers differ, nothing is timed", name)
    steps = command.num_sample_steps if name == "sample" else None
    return Entry(task, describe(subject.setting, steps), outcome)


def _write_task(command: BenchmarkCommand, name: TaskName, subject: Subject, folder: Path) -> Task:
    setting = subject.setting
    network = subject.folder or folder / "network"
    if subject.folder is None:
        write_network(setting.network, network)
    write_inputs(folder / "inputs.npz", make_inputs(name, setting))
    task = Task(
        name=name,
        folder=str(network),
        torch_class=torch_class(setting.network),
        inputs=str(folder / "inputs.npz"),
        batch_size=setting.batch_size,
        dtype=command.dtype,
        threads=command.threads or usable_cores(),
        num_sample_steps=command.num_sample_steps,
    )
    task.write(folder / "task.json")
    return task


def sides_of(command: BenchmarkCommand, task: Task, file: Path) -> list[Side]:
    """The programs that do a task: ours, PyTorch's eager mode, and torch.compile where it is asked for."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ours = Side(
        name="ldm_jax",
        command=lambda platform: [sys.executable, "-m", "ldm_jax.benchmark.jax_side", str(file)],
        env={**env, **_jax_variables(_cpu_devices(task, command.cpu_devices or task.threads))},
    )
    # -P keeps the package's folder off the path, where its files would hide others of the same name.
    program = [sys.executable, "-P", str(Path(__file__).with_name("torch_side.py")), str(file)]

    def torch_side(name: str, *flags: str, optional: bool = False) -> Side:
        return Side(
            name=name,
            command=lambda platform: [*program, _TORCH_DEVICES.get(platform, "cpu"), *flags],
            env=env,
            optional=optional,
        )

    eager, compiled = torch_side("PyTorch eager"), torch_side("torch.compile", "--compile", optional=True)
    return [ours, eager, *([compiled] if command.torch_compile else [])]


def _jax_variables(cpu_devices: int) -> Mapping[str, str]:
    """Devices on a CPU; no compilation cache, for compiling is one of the figures; and no memory of a GPU before it is
    needed, for PyTorch is on the same one."""
    variables = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        variables["JAX_NUM_CPU_DEVICES"] = str(cpu_devices)
    return variables


def _cpu_devices(task: Task, most: int) -> int:
    """As many as divide the batch: XLA runs small layers on one thread of a device."""
    return max(n for n in range(1, most + 1) if task.batch_size % n == 0)
