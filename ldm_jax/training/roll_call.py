"""Who has not come when the time to join is over.

jax's coordination service, in process 0, knows it. It says so in a line on stderr, ends all waiting, and the client of
process 0 would abort that process: here the line is read, and the client raises instead.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage] - nothing public says how long to wait

_REPORT = re.compile(r"tasks that reached the barrier: (\d+)/(\d+)\.\n[^\n]*task names:\n((?:\S*\d+\n)+)")


@dataclass
class RollCall:
    """What this process has heard, if it is the one that calls."""

    calls: bool = False
    report: str = ""

    @property
    def absent(self) -> str:
        """`process 3 of 4 has not come`, or the like for several; empty where it is not known."""
        found = _REPORT.search(self.report)
        if found is None:
            return ""
        come, count = int(found[1]), int(found[2])
        named = sorted(int(number) for number in re.findall(r"(\d+)\n", found[3]))
        if len(named) == 1 == count - come:
            return f"process {named[0]} of {count} has not come"
        further = count - come - len(named)
        tail = f" and {further} more" if further > 0 else ""  # the service names the first twenty
        return f"processes {', '.join(map(str, named))}{tail} of {count} have not come"


@contextlib.contextmanager
def roll_call(seconds: int) -> Iterator[RollCall]:
    """While `jax.distributed.initialize` joins the processes: all have to come so soon after the first.

    Else it raises RuntimeError in process 0, without a reason: that is in what is returned, behind the block. In the
    others jax says it on stderr, and aborts.
    """
    library: Any = _jax
    call = RollCall()
    serve, connect = library.get_distributed_runtime_service, library.get_distributed_runtime_client

    def serve_and_listen(*args: Any, **options: Any) -> Any:
        call.calls = True
        ending.enter_context(_stderr_read(call))
        return serve(*args, **options, cluster_register_timeout=seconds)

    def connect_or_raise(*args: Any, **options: Any) -> Any:
        if call.calls:  # that there is a callback keeps jax from aborting; what it would be told does not come through
            options["missed_heartbeat_callback"] = print
        return connect(*args, **options)

    library.get_distributed_runtime_service = serve_and_listen
    library.get_distributed_runtime_client = connect_or_raise
    with contextlib.ExitStack() as ending:
        try:
            yield call
        finally:
            library.get_distributed_runtime_service, library.get_distributed_runtime_client = serve, connect


@contextlib.contextmanager
def _stderr_read(call: RollCall) -> Iterator[None]:
    """Keep what goes to stderr, from C++ too, in the report, and pass it on."""
    try:
        real = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    reading, writing = os.pipe()

    def pass_on() -> None:
        while text := os.read(reading, 2**16):
            call.report += text.decode(errors="replace")
            os.write(real, text)

    reader = threading.Thread(target=pass_on)
    os.dup2(writing, 2)
    os.close(writing)
    reader.start()
    try:
        yield
    finally:
        os.dup2(real, 2)  # closes the pipe, which ends the reader
        reader.join()
        os.close(reading)
        os.close(real)
