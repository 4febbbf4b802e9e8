"""One task measured on several sides: first whether they compute the same, then how long each takes, in turn.

(1) relative difference = max |ours - theirs| / max |theirs|, of every result
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.benchmark.worker import Worker, WorkerFailed, start_worker
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.arrays import read_arrays
from ldm_jax.interop.cases.comparison import Comparison, compare

MIN_ROUND = 0.2
"""Seconds that a round lasts at least: quicker work is repeated in it without a pause."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A program that can do the task."""

    name: str
    command: Callable[[str], Sequence[str]]
    """The command line, from jax's name of the platform."""
    env: Mapping[str, str]
    optional: bool = False
    """Whether the others go on without it where it fails."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one side has shown."""

    name: str
    seconds: tuple[float, ...] = ()
    """Of each round, for the work once; empty where it was not timed."""
    first_seconds: float | None = None
    """What it takes until the first results: with compilation, for a side that compiles in its first call."""
    peak_memory: int | None = None
    """Bytes, from its start to its end."""
    running_memory: int | None = None
    """Bytes during the rounds alone, where the system can tell."""
    note: str = ""
    """Why it has no figures."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a task."""

    facts: Mapping[str, Any]
    """What our side said of itself: platform, device, compile_seconds, flops, num_parameters, versions."""
    numbers: tuple[Comparison, ...]
    """Every result of ours beside every other side's."""
    sides: tuple[Measured, ...] = ()
    """Ours first; empty where the numbers differ."""
    repeats: int = 1
    """How often the work was done in a round."""

    @property
    def passed(self) -> bool:
        """Whether all sides compute the same."""
        return all(row.passed for row in self.numbers)


def measure(
    sides: Sequence[Side],
    folder: Path,
    *,
    tolerance: Callable[[str], float],
    rounds: int,
    warmup: int,
    timed: Callable[[str], bool] = lambda platform: platform != "tpu",
) -> Outcome:
    """Run a task on every side, ours first.

    Args:
        sides: the programs; the first is ours.
        folder: for what passes between them.
        tolerance: largest relative difference (1) on a platform.
        rounds: how often each is timed.
        warmup: runs of each before that, besides those whose results are compared.
        timed: whether the other sides run where ours does on a platform, and so are timed. PyTorch is only compared
            with on the CPU where ours runs on a TPU.

    Raises:
        WorkerFailed: a side that is not optional has failed.
    """
    with ExitStack() as stack:
        team = _Team(sides, folder, stack)
        facts = team.begin(sides[0], "cpu")
        platform = facts["platform"]
        for side in sides[1:]:
            facts["versions"] |= team.begin(side, platform).get("versions", {})
        numbers = team.compare(sides[0].name, tolerance(platform))
        if not all(row.passed for row in numbers):
            return Outcome(facts=facts, numbers=numbers)
        racing = list(team.workers) if timed(platform) else [sides[0].name]
        repeats = team.warm_up(racing, warmup)
        team.race(racing, rounds, repeats)
        return Outcome(facts=facts, numbers=numbers, sides=team.measured(platform), repeats=repeats)


@dataclass
class _Team:
    """The workers of a task by name, and what is known of each."""

    sides: Sequence[Side]
    folder: Path
    stack: ExitStack
    workers: dict[str, Worker] = field(default_factory=dict)
    first_seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)

    def begin(self, side: Side, platform: str) -> dict[str, Any]:
        """Start a side and let it compute what is compared; nothing is said of an optional one that fails."""
        log = self.folder / f"{len(self.first_seconds) + len(self.failures)}.log"
        worker = start_worker(side.name, side.command(platform), side.env, log)
        self.stack.callback(worker.stop)
        try:
            facts = worker.ask("prepare")
            self.first_seconds[side.name] = worker.ask("check", path=str(self._results(side.name)))["seconds"]
        except WorkerFailed as error:
            if not side.optional:
                raise
            worker.stop()
            self.failures[side.name] = str(error)
            return {}
        self.workers[side.name] = worker
        return facts

    def _results(self, name: str) -> Path:
        return self.folder / f"results_{[side.name for side in self.sides].index(name)}.npz"

    def compare(self, ours: str, tolerance: float) -> tuple[Comparison, ...]:
        """Our results beside those of every other side (1)."""
        found, rows = read_arrays(self._results(ours)), []
        for other in (name for name in self.workers if name != ours):
            theirs = read_arrays(self._results(other))
            rows += [compare(f"{name}, {other}", found[name], x, tolerance, floor=_TINY) for name, x in theirs.items()]
        return tuple(rows)

    def warm_up(self, names: Sequence[str], warmup: int) -> int:
        """Run each a few times; how often the quickest must be repeated so that a round lasts `MIN_ROUND`."""
        last = [[self.workers[name].ask("run", repeats=1)["seconds"] for _ in range(warmup)][-1] for name in names]
        return max(1, math.ceil(MIN_ROUND / max(min(last), 1e-6)))

    def race(self, names: Sequence[str], rounds: int, repeats: int) -> None:
        """Time each in turn, every other round in the other order: who comes second finds another cache.

        Each runs once before it is timed. Memory that it gave back while the other worked can be dear to get again (by
        0.6 of 1.1 s for a training step, on a virtual machine), which a loop of steps does not pay.
        """
        self.seconds = {name: [] for name in names}
        before = {name: self.workers[name].ask("memory", anew=True) for name in names}
        for i in range(rounds):
            for name in names if i % 2 == 0 else reversed(names):
                self.workers[name].ask("run", repeats=1)
                self.seconds[name].append(self.workers[name].ask("run", repeats=repeats)["seconds"])
        for name in names:
            first, last = before[name], self.workers[name].ask("memory", anew=False)["peak"]
            whole = None if last is None else max(first["peak"], last)
            self.memory[name] = (whole, last if first["anew"] else None)

    def measured(self, platform: str) -> tuple[Measured, ...]:
        """What is known of each side, in their order."""
        return tuple(self._measured(side.name, platform) for side in self.sides)

    def _measured(self, name: str, platform: str) -> Measured:
        peak, running = self.memory.get(name, (None, None))
        note = self.failures.get(name, "" if name in self.seconds else f"not run on {platform}")
        return Measured(
            name=name,
            seconds=tuple(self.seconds.get(name, ())),
            first_seconds=self.first_seconds.get(name),
            peak_memory=peak,
            running_memory=running,
            note=note,
        )


_TINY = float(np.finfo(np.float32).tiny)


def check_rounds(rounds: int, warmup: int) -> None:
    """Refuse too few.

    Raises:
        UserError: naming the flag.
    """
    for name, value in (("rounds", rounds), ("warmup", warmup)):
        if value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
