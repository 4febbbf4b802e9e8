"""This project's side of a benchmark, a program of its own: `python -m ldm_jax.benchmark.jax_side TASK.json`.

It answers four questions: `prepare`, `check` (leaves the results in a file), `run` (how long the work takes), `memory`.
"""

import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.benchmark.service import forget_peak, peak_memory, serve, take_stdout, use_cores
from ldm_jax.benchmark.task import Task, read_task

PACKAGES = ("jax", "jaxlib", "flax", "optax")


class JaxSide:
    """A task on our side."""

    def __init__(self, task: Task) -> None:
        """Keep the task; nothing is imported yet."""
        self.task = task

    def prepare(self) -> dict[str, Any]:
        """Build and compile; on an accelerator one device is used, as PyTorch's eager mode does."""
        import jax

        from ldm_jax import sharding
        from ldm_jax.benchmark.ours import prepare
        from ldm_jax.config import MeshConfig

        self.device = jax.devices()[0]
        devices = jax.devices() if self.device.platform == "cpu" else jax.devices()[:1]
        self.work = prepare(self.task, sharding.make_mesh(MeshConfig(), devices))
        return {
            "platform": self.device.platform,
            "device": self.device.device_kind,
            "cpu_devices": len(devices),
            "compile_seconds": self.work.compile_seconds,
            "flops": self.work.flops,
            "num_parameters": self.work.num_parameters,
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }

    def check(self, path: str) -> dict[str, Any]:
        """Leave the results in a file."""
        began = time.perf_counter()
        arrays: Any = self.work.check()
        seconds = time.perf_counter() - began
        np.savez(path, **arrays)
        return {"seconds": seconds}

    def run(self, repeats: int) -> dict[str, Any]:
        """Seconds of the work once, the mean of `repeats` without a pause."""
        import jax

        began = time.perf_counter()
        results = [self.work.run() for _ in range(repeats)]
        jax.block_until_ready(results)
        return {"seconds": (time.perf_counter() - began) / repeats}

    def memory(self, anew: bool) -> dict[str, Any]:
        """Largest memory in bytes so far: of the process on a CPU, else of the device."""
        if self.device.platform != "cpu":
            statistics = self.device.memory_stats() or {}
            return {"peak": statistics.get("peak_bytes_in_use"), "anew": False}
        return {"peak": peak_memory(), "anew": anew and forget_peak()}


def main() -> None:
    """Answer questions about the task on the command line."""
    channel = take_stdout()
    task = read_task(Path(sys.argv[1]))
    use_cores(task.threads)
    side = JaxSide(task)
    answers = {"prepare": side.prepare, "check": side.check, "run": side.run, "memory": side.memory}
    serve(answers, sys.stdin, channel.write)


if __name__ == "__main__":
    main()
