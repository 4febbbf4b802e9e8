"""TensorBoard events of a stage, written as they come; a disk that takes no more stops them and nothing else."""

import logging
from pathlib import Path

from ldm_jax.files.event_file import EventFile

logger = logging.getLogger(__name__)


class Board:
    """An event file; what cannot be written to it is told once and left out, for metrics.jsonl has it all."""

    def __init__(self, folder: Path, start_step: int) -> None:
        """Begin a file in `folder` that replaces what earlier ones tell of the steps behind `start_step`."""
        self._folder = folder
        self._events: EventFile | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventFile(folder)
            self._events.write_start(start_step + 1)
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        if self._events is None:
            return
        try:
            for name, value in values.items():
                self._events.write_value(step, name, value)
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

    def _give_up(self, error: OSError) -> None:
        self._events = None
        logger.warning("TensorBoard events in %s end here (%s); metrics.jsonl goes on", self._folder, error)
