"""A trace of some training steps for the profiler of jax: what each operation on each device takes."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

logger = logging.getLogger(__name__)


@dataclass
class Profile:
    """Traces the calls `first` to `last` of a step, counted from 1 where the process began."""

    folder: Path
    first: int
    last: int
    running: bool = False

    def begin(self, call: int) -> None:
        """Start the trace before the first of its calls."""
        if call == self.first:
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def end(self, call: int, results: Any) -> None:
        """Stop the trace behind the last of its calls, when its results are there."""
        if self.running and call == self.last:
            jax.block_until_ready(results)
            self._stop(call)

    def close(self, calls: int) -> None:
        """Stop a trace that training has not come to the end of, and tell of one that it has not come to."""
        if self.running:
            self._stop(calls)
        elif calls < self.first:
            logger.warning("no trace was written: it begins with step %d, and there were %d", self.first, calls)

    def _stop(self, call: int) -> None:
        jax.profiler.stop_trace()
        self.running = False
        logger.info(
            "a trace of steps %d to %d of this start is in %s: open its .trace.json.gz in https://ui.perfetto.dev, or "
            "`pip install xprof; xprof --logdir %s`",
            *(self.first, call, self.folder, self.folder),
        )
