"""What the processes of a soak take while they live: memory of their own and open files, and whether these are flat."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

LARGEST_GROWTH = 0.02
"""Growth of memory behind the warm-up, as a share, below which a process is called flat."""


class Sample(NamedTuple):
    """A process at a moment."""

    age: float
    """Seconds since it was first seen."""
    memory: int
    """Resident bytes that are its own."""
    files: int
    """Open files, sockets and pipes."""
    step: int
    """What the run was at."""


@dataclass(frozen=True)
class Windows:
    """When a process is compared with itself: behind its warm-up, and before its end."""

    warm_up: int
    """Steps in its life, in which all that a run does now and then has been done once."""
    length: float
    """Seconds of either window."""


@dataclass
class Life:
    """A process from its start to its end."""

    name: str
    started: float
    samples: list[Sample] = field(default_factory=list)

    def measure(self, process: int, step: int) -> None:
        """Read what the process takes now, at a step of the run; raises OSError if it has ended."""
        folder = Path("/proc") / str(process)
        memory = _own_memory((folder / "status").read_text())
        files = len(list((folder / "fd").iterdir()))
        self.samples.append(Sample(time.monotonic() - self.started, memory, files, step))

    @property
    def seconds(self) -> float:
        """How long it lived, as far as it was seen."""
        return self.samples[-1].age if self.samples else 0.0

    def levels(self, windows: Windows) -> tuple[Sample, Sample] | None:
        """What it took behind the warm-up and before its end; None for a life too short for both.

        Memory is the median of the window; of open files the fewest are taken, for saving opens some for a moment.
        """
        first = min((s.step for s in self.samples), default=0)  # behind a fault some steps are done again
        warm = next((s.age for s in self.samples if s.step > first + windows.warm_up), math.inf)
        if self.seconds < warm + 2 * windows.length:
            return None
        early = [s for s in self.samples if warm <= s.age < warm + windows.length]
        late = [s for s in self.samples if s.age >= self.seconds - windows.length]
        return _level(early), _level(late)


def _own_memory(status: str) -> int:
    """Bytes of a process that are no pages of files: the system drops those of libraries and brings them back."""
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def _level(window: list[Sample]) -> Sample:
    memory = int(statistics.median(sample.memory for sample in window))
    return Sample(window[0].age, memory, min(sample.files for sample in window), window[0].step)


def growth(levels: tuple[Sample, Sample]) -> tuple[float, int]:
    """By which share memory has grown from one to the other, and by how many the open files."""
    early, late = levels
    return late.memory / early.memory - 1, late.files - early.files


def is_flat(levels: tuple[Sample, Sample]) -> bool:
    """Whether neither memory nor open files have grown."""
    memory, files = growth(levels)
    return memory < LARGEST_GROWTH and files <= 0


def as_table(lives: list[Life], windows: Windows) -> str:
    """The lives that are long enough, as Markdown."""
    lines = [
        "| process | lived, s | MiB after warm-up | MiB at its end | growth | open files | at its end |",
        "|---|---|---|---|---|---|---|",
    ]
    for life in lives:
        if (levels := life.levels(windows)) is not None:
            memory = " | ".join(f"{level.memory / 2**20:.0f}" for level in levels)
            files = " | ".join(str(level.files) for level in levels)
            lines.append(f"| {life.name} | {life.seconds:.0f} | {memory} | {growth(levels)[0]:+.2%} | {files} |")
    return "\n".join(lines)


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
