"""A stopwatch for the start of a run: what the time went into until the first step was done."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Startup:
    """The laps of a start, in seconds, since `last`, a value of `time.perf_counter`."""

    last: float = field(default_factory=time.perf_counter)
    laps: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_process(cls) -> "Startup":
        """A start that began with this process, where the system tells when that was (Linux), else now."""
        return cls(last=time.perf_counter() - process_age())

    def lap(self, name: str) -> float:
        """Call the time since the last lap `name`, and return it."""
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now
        return self.laps[name]

    def restart(self) -> None:
        """Begin anew: what came before belongs to another start."""
        self.last, self.laps = time.perf_counter(), {}

    def __str__(self) -> str:
        """One line: each lap and their sum."""
        laps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.laps.items())
        return f"start-up {sum(self.laps.values()):.1f} s: {laps}"


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # in ticks, since boot
        now = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return 0.0
    return max(now - began / os.sysconf("SC_CLK_TCK"), 0.0)
