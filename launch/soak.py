"""Train for a while on several processes of this machine, break them every few minutes, and measure what that costs.

    python launch/soak.py --minutes 30 --every 3 --quiet 9 --run-dir /tmp/soak

Faults take turns: a process is killed, asked to stop, and stopped dead. `ldm launch` brings the run back. In the last
minutes nothing is broken, so that some processes live long. Measured are the steps missing from the metrics at the end
(none may be), steps done twice, and how memory and open files grow (`soak_lives.py`) in each process between its
warm-up and its end, and in the launcher over all of it. A table goes to stderr; the last line, on stdout, is JSON with
the verdict on each; the exit status is 1 if one of them is not good.
"""

import argparse
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_lives import Life, Windows, as_table, growth, is_flat, workers_of

logger = logging.getLogger("soak")

EXPERIMENT = Path(__file__).parent.parent / "tests" / "small_run.py"
RHYTHM = {"eval-every": "50", "sample-every": "100"}
FAULTS = tuple(itertools.product((signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP), (1, 0)))
STOPPED = 75
"""Exit status of a run that was asked to stop, and is saved."""


def steps_of(run: Path) -> list[int]:
    """Steps of the second stage in the metrics, in the order of the file."""
    file = run / "metrics.jsonl"
    lines = (json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")) if file.exists() else []
    return [line["step"] for line in lines if line["stage"] == "diffusion" and "loss" in line]


@dataclass
class Soak:
    """A run that is broken again and again, and what was seen of it."""

    run: Path
    every: float
    """Seconds between two faults, from the first step on."""
    heartbeat: float
    checkpoint_every: int
    """Steps between two checkpoints."""
    lives: dict[int, Life] = field(default_factory=dict)
    """By process id."""
    injected: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0
    """Steps that were done again."""
    step: int = 0
    next_fault: float | None = None

    def last(self, seconds: float, quiet: float) -> int:
        """Train, break but for the last `quiet` seconds, and ask the run to stop; its exit status."""
        launcher = self._launch()
        end = time.monotonic() + seconds
        while time.monotonic() < end and launcher.poll() is None:
            time.sleep(1.0)
            workers = dict(workers_of(launcher.pid))
            self._measure({"launcher": launcher.pid} | {f"process {i}": pid for i, pid in workers.items()})
            self._count()
            if time.monotonic() < end - quiet and len(workers) == 2:
                self._break(workers)
        launcher.send_signal(signal.SIGTERM)
        status = launcher.wait(600)
        self._count()
        return status

    def _launch(self) -> "subprocess.Popen[bytes]":
        flags = ["--run-dir", str(self.run), "--distributed.heartbeat-seconds", str(self.heartbeat)]
        rhythm = RHYTHM | {"checkpoint-every": str(self.checkpoint_every)}
        flags += [text for name, value in rhythm.items() for text in (f"--training.{name}", value)]
        program = [sys.executable, "-c", "from ldm_jax.cli import main; main()", "launch", "--processes", "2"]
        command = [*program, "--restarts", "1000", "--", "train", str(EXPERIMENT), *flags]
        return subprocess.Popen(command, env=os.environ | {"SMALL_STEPS": "1000000"}, stdin=subprocess.DEVNULL)

    def _measure(self, processes: dict[str, int]) -> None:
        for name, process in processes.items():
            life = self.lives.setdefault(process, Life(name, time.monotonic()))
            try:
                life.measure(process, self.step)
            except OSError:  # it has just ended
                continue

    def _count(self) -> None:
        """Lines behind the checkpoint from which a run goes on are written again: those steps were done twice."""
        step = (steps_of(self.run) or [0])[-1]
        self.repeated, self.step = self.repeated + max(self.step - step, 0), step

    def _break(self, workers: dict[int, int]) -> None:
        now = time.monotonic()
        if self.next_fault is None and self.step > 0:
            self.next_fault = now + self.every
        if self.next_fault is None or now < self.next_fault:
            return
        number, process = FAULTS[len(self.injected) % len(FAULTS)]
        logger.info("step %d: %s to process %d", self.step, number.name, process)
        self.injected.append({"step": self.step, "signal": number.name, "process": process})
        os.kill(workers[process], number)
        self.next_fault = now + self.every


def report(soak: Soak, status: int, windows: Windows) -> dict[str, Any]:
    """What came out, with a verdict on each of what was to be shown."""
    steps = steps_of(soak.run)
    levels = [found for life in soak.lives.values() if (found := life.levels(windows)) is not None]
    memory, files = zip(*map(growth, levels), strict=True) if levels else ((), ())
    lost = len(set(range(1, steps[-1] + 1)) - set(steps)) if steps else None
    twice = len(steps) - len(set(steps))
    return {
        "steps": steps[-1] if steps else 0,
        "steps_lost": lost,
        "steps_repeated": soak.repeated,
        "lines_twice": twice,
        "faults": soak.injected,
        "exit_status": status,
        "lives": len(soak.lives),
        "lives_long_enough": len(levels),
        "largest_memory_growth": max(memory, default=None),
        "largest_growth_of_open_files": max(files, default=None),
        "verdict": {
            "nothing_lost": lost == 0 and twice == 0,
            "flat": bool(levels) and all(map(is_flat, levels)),
            "stopped_when_asked": status == STOPPED,
        },
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run; does not exist yet")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long")
    parser.add_argument("--every", type=float, default=3.0, help="minutes between two faults, from the first step on")
    parser.add_argument("--quiet", type=float, default=9.0, help="minutes at the end in which nothing is broken")
    parser.add_argument("--checkpoint-every", type=int, default=500, help="steps between two checkpoints")
    parser.add_argument("--warm-up", type=int, default=600, help="steps of a process before it has to be flat")
    parser.add_argument("--window", type=float, default=30.0, help="seconds over which its memory is taken")
    parser.add_argument("--heartbeat", type=float, default=20.0, help="seconds after which a silent process is dead")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s soak: %(message)s", stream=sys.stderr)
    soak = Soak(given.run_dir, 60 * given.every, given.heartbeat, given.checkpoint_every)
    windows = Windows(given.warm_up, given.window)
    status = soak.last(60 * given.minutes, 60 * given.quiet)
    found = report(soak, status, windows)
    logger.info("processes that lived long enough to tell:\n%s", as_table(list(soak.lives.values()), windows))
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if all(found["verdict"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
