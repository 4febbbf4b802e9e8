"""The step of a stage as the loop calls it: compiled in its first call, counted, timed, and traced where asked for."""

import logging
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Key

from ldm_jax.flops import count_jaxpr
from ldm_jax.training.profile import Profile
from ldm_jax.training.startup import Startup
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Batch, Metrics

logger = logging.getLogger(__name__)


@dataclass
class ObservedStep:
    """A jitted step that says at its first call what the start of the run went into."""

    name: str
    """Of the stage, for messages."""
    jitted: Any
    """From `jax.jit`; it is traced once, for the compiler and to count its operations."""
    startup: Startup
    profile: Profile | None = None
    flops: float = 0.0
    """Floating-point operations of a step; known behind the first call."""
    compile_seconds: float = 0.0
    """What the first call has spent on tracing and compiling."""
    calls: int = 0
    _compiled: Any = None

    def __call__(self, state: TrainState, batch: Batch, root: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        """Take a step; the first call waits for its results."""
        self.calls += 1
        if self.calls == 1:
            self._compiled = self._compile(state, batch, root)
        if self.profile is not None:
            self.profile.begin(self.calls)
        state, metrics = self._compiled(state, batch, root)
        if self.profile is not None:
            self.profile.end(self.calls, metrics)
        if self.calls == 1:
            jax.block_until_ready(metrics)
            self.startup.lap("first step")
            told = str(self.startup)  # now: a handler may format later, when another stage has begun
            logger.info("%s: %s; %.4g GFLOP a step", self.name, told, self.flops / 1e9)
        return state, metrics

    def _compile(self, state: TrainState, batch: Batch, root: Key[Array, ""]) -> Any:
        self.startup.lap("build")
        traced = self.jitted.trace(state, batch, root)
        self.flops = count_jaxpr(traced.jaxpr.jaxpr)
        compiled = traced.lower().compile()
        self.compile_seconds = self.startup.lap("compile")
        return compiled

    def close(self) -> None:
        """End a trace, and let the next stage begin a start of its own."""
        if self.profile is not None:
            self.profile.close(self.calls)
        self.startup.restart()
