"""One task of a benchmark: what both sides are given, as a folder of weights, arrays, and a file that tells the rest.

The weights are a component of diffusers, the arrays have PyTorch's layouts and names; both sides read both.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

TaskName: TypeAlias = Literal["train", "sample", "train_autoencoder", "encode", "decode"]
DType: TypeAlias = Literal["float32", "bfloat16"]

UNET_TASKS: tuple[TaskName, ...] = ("train", "sample")
AUTOENCODER_TASKS: tuple[TaskName, ...] = ("train_autoencoder", "encode", "decode")

TRAINING_TASKS: tuple[TaskName, ...] = ("train", "train_autoencoder")

_PASS, _RUN, _SUMS = 1e-4, 2e-3, 5e-4
_TOLERANCES: dict[TaskName, float] = {
    "train": _SUMS,
    "sample": _RUN,
    "train_autoencoder": _SUMS,
    "encode": _PASS,
    "decode": _PASS,
}
"""Largest relative differences in float32; those of `ldm parity` for a pass and for a whole run."""
_ROUNDED = {name: 0.2 if name == "sample" else 0.1 for name in _TOLERANCES}
"""The same where matrix products are of numbers with 8 to 11 bits: bfloat16, and float32 on accelerators."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a training task is trained: AdamW with clipping, and a moving average of the parameters, on both sides."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    kl_weight: float = 1e-6
    """Of the autoencoder, whose reconstruction loss is l1."""
    check_steps: int = 2
    """Steps whose losses and gradient norms are compared: the second also knows what the optimizer did."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stable Diffusion's noise schedule, linear in the square root of beta; epsilon is predicted."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as both sides read it."""

    name: TaskName
    folder: str
    """Component of diffusers: config.json and weights."""
    torch_class: str
    """PyTorch's class of it."""
    inputs: str
    """The .npz of the inputs."""
    batch_size: int
    """Pictures in one step, or in one call."""
    dtype: DType = "float32"
    """Numbers of convolutions and matrix products."""
    threads: int = 1
    """Cores that are used."""
    num_sample_steps: int = 50
    """Steps of DDIM (sample)."""
    training: Training = Training()
    schedule: Schedule = Schedule()

    def tolerance(self, platform: str) -> float:
        """Largest relative difference of the results, on a platform as jax calls it."""
        exact = self.dtype == "float32" and platform == "cpu"
        return (_TOLERANCES if exact else _ROUNDED)[self.name]

    def write(self, path: Path) -> None:
        """Write the task for the programs of both sides."""
        path.write_text(json.dumps(dataclasses.asdict(self)))


def read_task(path: Path) -> Task:
    """The inverse of `Task.write`."""
    values: dict[str, Any] = json.loads(path.read_text())
    training, schedule = Training(**values.pop("training")), Schedule(**values.pop("schedule"))
    return Task(**values, training=training, schedule=schedule)


def write_inputs(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the inputs of a task."""
    given: Any = arrays
    np.savez(path, **given)
