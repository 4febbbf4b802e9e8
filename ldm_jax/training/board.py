"""TensorBoard events of a stage, written as they come and in the caller's thread.

tensorboardX hands them to a thread of its own, and when that dies of a full disk, whoever writes next waits for ever.
"""

import logging
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

_proto: Any = event_pb2  # its classes are made when it is imported, where no type checker sees them
logger = logging.getLogger(__name__)


class Board:
    """An event file; what cannot be written to it is told once and left out, for metrics.jsonl has it all."""

    def __init__(self, folder: Path, start_step: int) -> None:
        """Begin a file in `folder` that replaces what earlier ones tell of the steps behind `start_step`."""
        self._folder = folder
        self._events: EventsWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventsWriter(str(folder / "events"), "")
            self._put(_proto.Event(step=start_step + 1, session_log=_proto.SessionLog(status=_proto.SessionLog.START)))
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        try:
            for name, value in values.items():
                self._put(_proto.Event(step=step, summary=scalar(name, value)))
            if self._events is not None:
                self._events.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        try:
            if self._events is not None:
                self._events.close()
        except OSError as error:
            self._give_up(error)

    def _put(self, event: Any) -> None:
        if self._events is not None:
            event.wall_time = time.time()  # shown by TensorBoard; its order is that of the steps
            self._events.write_event(event)

    def _give_up(self, error: OSError) -> None:
        self._events = None
        logger.warning("TensorBoard events in %s end here (%s); metrics.jsonl goes on", self._folder, error)
