"""A measuring program from within: it answers questions on stdin (see `worker`), and tells how much memory it has used.

`torch_side` does the same in its own words, for it imports nothing of this package.
"""

import ctypes
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

Answer = Callable[..., dict[str, Any]]
"""What is done for a question, with its values as keywords."""


def take_stdout() -> TextIO:
    """The channel to who asks, for this program alone: whatever a library prints goes to stderr from now on."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def serve(answers: Mapping[str, Answer], questions: Iterable[str], say: Callable[[str], object]) -> None:
    """Answer until nobody asks any more; an error is an answer too, and what it says is for the user."""
    for line in questions:
        values: dict[str, Any] = json.loads(line)
        name = values.pop("ask")
        try:
            reply = {"answer": answers[name](**values)}
        except Exception as error:  # whatever it is, the other side must not wait for ever
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        say(json.dumps(reply) + "\n")


def use_cores(threads: int) -> None:
    """Keep this process, and every thread that it starts from now on, to the first `threads` of its cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_memory() -> int:
    """The most bytes that this process has held at once since it began, or since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started this process
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(words[1]) for words in lines if words[0] == "VmHWM:") * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> bool:
    """Begin `peak_memory` anew, without what compiling has left behind; False where that cannot be: not on Linux."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # the allocator keeps what was freed, and it would count
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True
