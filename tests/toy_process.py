"""One process of a toy run: `python toy_process.py RUN_DIR [STEPS]`, joined as `ldm train` joins.

$TOY_FAULT, such as `stuck 1 4`, `fail 1 4` or `loop 1 4`, makes process 1 do so when it reads the batch of step 4, or,
with step 0, before it opens the run folder. What the run came to goes to RUN_DIR/result_PROCESS.json, and the rows that
were read for each step to RUN_DIR/rows_PROCESS_of_COUNT.jsonl: Gloo writes to stdout.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")

from ldm_jax import cli
from ldm_jax.config import DistributedConfig, MeshConfig
from ldm_jax.errors import UserError
from ldm_jax.training.processes import joined

HEARTBEAT = 8.0
BUSY = 10.0


def fault(step: int, process: int) -> None:
    """Do what $TOY_FAULT says, at its step of its process."""
    kind, who, when = os.environ.get("TOY_FAULT", "none -1 -1").split()
    if (int(who), int(when)) != (process, step):
        return
    if kind == "fail":
        raise UserError("picture 7 is damaged")
    while kind in ("stuck", "loop"):  # a thread that waits for ever, or one that computes for ever
        if kind == "stuck":
            time.sleep(1.0)


def _busy_seconds() -> float:
    """Short only where a hang is to be noticed that comes before anything is compiled."""
    return BUSY if os.environ.get("TOY_FAULT", "").endswith(" 0") else 300.0


def train(arguments: list[str]) -> None:
    """Train and write what came out."""
    path, steps = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 40
    with joined(DistributedConfig(heartbeat_seconds=HEARTBEAT, busy_seconds=_busy_seconds(), start_seconds=60.0)):
        import jax
        from test_loop import CONFIG, Toy

        from ldm_jax import sharding

        process = jax.process_index()
        rows = path / f"rows_{process}_of_{jax.process_count()}.jsonl"

        def change(step: int, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.05)
            fault(step, process)
            with rows.open("a") as file:
                file.write(json.dumps([step, batch["sample_index"].tolist()]) + "\n")
            (path / f"reached_{process}").write_text(str(step))
            return batch

        training = dataclasses.replace(
            CONFIG, num_steps=steps, eval_every=10**6, sample_every=10**6, checkpoint_every=5
        )
        toy = Toy(path, sharding.make_mesh(MeshConfig()), training, change)
        fault(0, process)
        state = toy.run()
        leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
        result = {"digest": hashlib.sha256(b"".join(leaves)).hexdigest(), "step": int(state.step)}
        (path / f"result_{process}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(cli.run(train, sys.argv[1:]))
