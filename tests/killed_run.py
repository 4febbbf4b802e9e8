"""A run that tests kill: a few seconds of training. `python killed_run.py RUN DATA NUM_DEVICES [CRASH STAGE STEP]`.

CRASH ends the process by itself while it saves that step: `seal` when all is written but the seal, `delete` when the
seal of the checkpoint that goes is removed and its folder is not.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from tiny import tiny_experiment

from ldm_jax import cli
from ldm_jax.config import Experiment, MeshConfig, TrainingConfig

NUM_STEPS = 60
NUM_KEPT = 2


def experiment(data_cache: Path, mesh: MeshConfig | None = None) -> Experiment:
    """A checkpoint at every second step, so that many a moment is one of saving or deleting."""
    tiny = tiny_experiment(data_cache)
    return dataclasses.replace(
        tiny,
        mesh=mesh or MeshConfig(),
        first_stage=dataclasses.replace(tiny.first_stage, training=_training(tiny.first_stage.training)),
        training=_training(tiny.training),
    )


def _training(training: TrainingConfig) -> TrainingConfig:
    rhythm = {"log_every": 1, "eval_every": 30, "sample_every": 10**6, "checkpoint_every": 2}
    return dataclasses.replace(training, num_steps=NUM_STEPS, keep_checkpoints=NUM_KEPT, **rhythm)


def train(arguments: list[str]) -> None:
    """Train into a folder, as `ldm train` would."""
    folder, data_cache, num_devices, *crash = arguments
    cli.start_jax(int(num_devices))
    from ldm_jax.experiment import train_experiment

    if crash:
        _crash(*crash)
    train_experiment(experiment(Path(data_cache)), Path(folder))


def _crash(when: str, stage: str, step: str) -> None:
    from ldm_jax.training import checkpoints

    name = {"seal": "write_seal", "delete": "_remove"}[when]
    act = getattr(checkpoints, name)
    target = f"{stage}/{int(step):08d}"

    def crash_or_act(path: Any, *rest: Any) -> None:
        if str(path).removesuffix(".json").endswith(target):
            os._exit(9)
        act(path, *rest)

    setattr(checkpoints, name, crash_or_act)


if __name__ == "__main__":
    sys.exit(cli.run(train, sys.argv[1:]))
