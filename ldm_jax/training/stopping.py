"""Being asked to stop: by a signal to this process or, where a run has several, by a signal to any of them."""

import signal
from types import FrameType

from jax.experimental import multihost_utils

from ldm_jax.errors import UserError
from ldm_jax.training import processes

SAVED_AND_STOPPED = 75
"""Exit status of a run that was asked to stop, and is saved; the same command goes on from there."""


class Interrupted(UserError):
    """The run was asked to stop, and its state is saved."""

    exit_code = SAVED_AND_STOPPED
    comes_to_all = True


class StopRequests:
    """Notes SIGTERM and SIGINT while it is entered, instead of dying from them.

    Where processes have joined, jax notes SIGTERM (from before the first step on), and finds for all processes the same
    step at which each learns of it; a handler of our own would take the signal away from it. SIGINT is passed on as
    SIGTERM there. Asked twice by the keyboard, or by either signal where it is alone, a process stops at once.
    """

    def __init__(self) -> None:
        """Nothing is noted before it is entered."""
        self._asked: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        """Take over the signals."""
        numbers = (signal.SIGINT,) if processes.are_joined() else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: whoever owns the process handles its signals
                break
        return self

    def __exit__(self, *exception: object) -> None:
        """Hand the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    @property
    def asked(self) -> bool:
        """Whether this process was asked, where it is alone; of several nobody knows before all do."""
        return self._asked is not None and not processes.are_joined()

    def arrived(self) -> bool:
        """Whether to stop after this step; to be called once in every step, by every process."""
        if processes.are_joined():
            return multihost_utils.reached_preemption_sync_point(processes.next_step())
        return self._asked is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            raise KeyboardInterrupt  # asked twice: stop at once
        self._asked = number
        if processes.are_joined():
            signal.raise_signal(signal.SIGTERM)
