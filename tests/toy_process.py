"""One process of a toy run: `python toy_process.py RUN_DIR [STEPS]`, joined as `ldm train` joins.

$TOY_FAULT, such as `stuck 1 4`, `fail 1 4` or `loop 1 4`, makes process 1 do so when it reads the batch of step 4.
What the run came to, and which rows were read, goes to RUN_DIR/result_PROCESS.json: Gloo writes to stdout.
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

HEARTBEAT = 6.0


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


def train(arguments: list[str]) -> None:
    """Train and write what came out."""
    path, steps = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 40
    with joined(DistributedConfig(heartbeat_seconds=HEARTBEAT, start_seconds=60.0)):
        import jax
        from test_loop import CONFIG, Toy

        from ldm_jax import sharding

        process, rows = jax.process_index(), []

        def change(step: int, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.05)
            fault(step, process)
            rows.append(batch["sample_index"].tolist())
            (path / f"reached_{process}").write_text(str(step))
            return batch

        training = dataclasses.replace(
            CONFIG, num_steps=steps, eval_every=10**6, sample_every=10**6, checkpoint_every=5
        )
        toy = Toy(path, sharding.make_mesh(MeshConfig()), training, change)
        state = toy.run()
        leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
        result = {"digest": hashlib.sha256(b"".join(leaves)).hexdigest(), "rows": rows, "step": int(state.step)}
        (path / f"result_{process}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(cli.run(train, sys.argv[1:]))
