"""Train for a while on several processes of this machine, break them every few minutes, and measure what that costs.

    python launch/soak.py --minutes 30 --every 3 --run-dir /tmp/soak

Faults take turns: a process is killed, asked to stop, and stopped dead. `ldm launch` brings the run back. Measured are
the steps missing from the metrics at the end (none may be), steps done twice, and how memory and open files of each
process grow between its warm-up and its end. The last line, on stdout, is JSON; the exit status is 1 if it is not good.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger("soak")

EXPERIMENT = Path(__file__).parent.parent / "tests" / "small_run.py"
FAULTS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
LARGEST_GROWTH = 0.02
"""Growth of memory after the warm-up, as a share, with which a process is called flat."""


@dataclass
class Life:
    """What was measured of one process from its start to its end."""

    started: float
    memory: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start, and resident bytes."""
    files: list[int] = field(default_factory=list)

    def measure(self, process: int) -> None:
        """Read memory and files of the process while it lives."""
        folder = Path("/proc") / str(process)
        pages = int((folder / "statm").read_text().split()[1])
        self.files.append(len(list((folder / "fd").iterdir())))
        self.memory.append((time.monotonic() - self.started, pages * os.sysconf("SC_PAGE_SIZE")))

    def growth(self, warm_up: float) -> float | None:
        """Growth of memory from the minute after the warm-up to the last minute; None for a life too short to tell."""
        end = self.memory[-1][0]
        early = [size for at, size in self.memory if warm_up <= at < warm_up + 60]
        late = [size for at, size in self.memory if at >= end - 60]
        if not early or end < warm_up + 120:
            return None
        return (sum(late) / len(late)) / (sum(early) / len(early)) - 1


def workers_of(launcher: int) -> Iterator[tuple[int, int]]:
    """Number and process id of each process that the launcher has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != launcher:
                continue
            variables = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
            yield int(variables["JAX_PROCESS_ID"]), int(folder.name)
        except (OSError, KeyError, IndexError, ValueError):  # it has ended meanwhile, or is another's
            continue


def steps_of(run: Path) -> list[int]:
    """Steps of the second stage in the metrics, in the order of the file."""
    file = run / "metrics.jsonl"
    lines = (json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")) if file.exists() else []
    return [line["step"] for line in lines if line["stage"] == "diffusion" and "loss" in line]


def soak(run: Path, minutes: float, every: float, warm_up: float, heartbeat: float) -> dict[str, Any]:
    """Train, break and measure; what came out."""
    flags = ["--run-dir", str(run), "--distributed.heartbeat-seconds", str(heartbeat)]
    flags += ["--training.checkpoint-every", "20", "--training.eval-every", "100", "--training.sample-every", "200"]
    program = [sys.executable, "-c", "from ldm_jax.cli import main; main()", "launch", "--processes", "2"]
    command = [*program, "--restarts", "1000", "--", "train", str(EXPERIMENT), *flags]
    launcher = subprocess.Popen(command, env=os.environ | {"SMALL_STEPS": "1000000"}, stdin=subprocess.DEVNULL)
    lives: dict[int, Life] = {}
    repeated, injected = 0, []
    faults = itertools.cycle(itertools.product(FAULTS, (1, 0)))
    end, next_fault, before = time.monotonic() + 60 * minutes, None, 0
    while time.monotonic() < end and launcher.poll() is None:
        time.sleep(2.0)
        workers = dict(workers_of(launcher.pid))
        for worker in workers.values():
            life = lives.setdefault(worker, Life(time.monotonic()))
            try:
                life.measure(worker)
            except OSError:
                continue
        step = (steps_of(run) or [0])[-1]
        repeated, before = repeated + max(before - step, 0), step
        if next_fault is None and step > 0:
            next_fault = time.monotonic() + 60 * every
        if next_fault is not None and time.monotonic() > next_fault and len(workers) == 2:
            number, process = next(faults)
            logger.info("step %d: %s to process %d", step, number.name, process)
            injected.append({"step": step, "signal": number.name, "process": process})
            os.kill(workers[process], number)
            next_fault = time.monotonic() + 60 * every
    launcher.send_signal(signal.SIGTERM)
    status = launcher.wait(600)
    repeated += max(before - (steps_of(run) or [0])[-1], 0)
    return _report(run, lives, warm_up) | {"faults": injected, "steps_repeated": repeated, "exit_status": status}


def _report(run: Path, lives: dict[int, Life], warm_up: float) -> dict[str, Any]:
    steps = steps_of(run)
    measured = [life for life in lives.values() if life.memory]
    growths = [growth for life in measured if (growth := life.growth(warm_up)) is not None]
    settled = [[n for (at, _), n in zip(life.memory, life.files, strict=True) if at >= warm_up] for life in measured]
    return {
        "steps": steps[-1] if steps else 0,
        "steps_lost": len(set(range(1, steps[-1] + 1)) - set(steps)) if steps else None,
        "lines_twice": len(steps) - len(set(steps)),
        "lives": len(lives),
        "lives_long_enough": len(growths),
        "largest_memory_growth": max(growths, default=None),
        "largest_growth_of_open_files": max((max(n) - n[0] for n in settled if n), default=None),
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run; does not exist yet")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long")
    parser.add_argument("--every", type=float, default=3.0, help="minutes between two faults, from the first step on")
    parser.add_argument("--warm-up", type=float, default=90.0, help="seconds of a process before its memory counts")
    parser.add_argument("--heartbeat", type=float, default=20.0, help="seconds after which a silent process is dead")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s soak: %(message)s", stream=sys.stderr)
    report = soak(given.run_dir, given.minutes, given.every, given.warm_up, given.heartbeat)
    sys.stdout.write(json.dumps(report) + "\n")
    growth = report["largest_memory_growth"]
    good = report["steps_lost"] == 0 and report["lines_twice"] == 0 and report["exit_status"] == 75
    return 0 if good and (growth is None or growth < LARGEST_GROWTH) else 1


if __name__ == "__main__":
    sys.exit(main())
