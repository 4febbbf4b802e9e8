"""A program that measures, seen from the one that compares: a question and an answer are a line of JSON each.

    {"ask": NAME, ...}  ->  {"answer": {...}}  or  {"error": "what went wrong"}

Each side of a benchmark is such a program, so that its memory and its threads are its own, and waits for a question
while the other one works. Whatever it says besides goes to its log.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_jax.errors import UserError

_TAIL = 3  # lines of a log that an error repeats


class WorkerFailed(UserError):
    """A side has stopped, or has answered that it cannot."""


@dataclass(frozen=True)
class Worker:
    """A side that is at work."""

    name: str
    """As the report calls it."""
    process: "subprocess.Popen[str]"
    log: Path
    """What it writes to stderr."""

    def ask(self, question: str, **values: Any) -> dict[str, Any]:
        """Ask and wait for the answer.

        Raises:
            WorkerFailed: it has ended, or answered with an error.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"ask": question, **values}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerFailed(f"{self.name} has ended at '{question}': {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(f"{self.name} has failed at '{question}': {reply['error']}")
        return reply["answer"]

    def _last_words(self) -> str:
        status = self.process.wait()
        said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        killed = " (killed: was there enough memory?)" if status == -9 else ""
        return f"status {status}{killed}" + (f"; {' | '.join(said[-_TAIL:])}" if said else "")

    def stop(self) -> None:
        """End the program; what it holds is freed when this returns."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def start_worker(name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> Worker:
    """Start the program of a side; its log is a new file at `log`."""
    with log.open("w") as file:
        process = subprocess.Popen(
            list(command), env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
        )
    return Worker(name, process, log)
