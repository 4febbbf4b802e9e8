"""Reading that is tried again: a network disk may come back."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

_WAITS = (0.2, 1.0, 5.0)
"""Seconds before each further try."""

Value = TypeVar("Value")


class Unreadable(Exception):
    """Something could not be read, however often it was tried."""


def read_patiently(read: Callable[[], Value], name: str) -> Value:
    """What `read` gives, at once or after a wait.

    Raises:
        Unreadable: it fails whatever it fails by, every time; the message names it and the last fault.
    """
    for wait in _WAITS:
        try:
            return read()
        except Exception as error:  # array_record reports every fault by whatever exception its reader meets
            _log.warning("%s cannot be read (%s); trying again in %g s", name, error, wait)
            time.sleep(wait)
    try:
        return read()
    except Exception as error:
        raise Unreadable(f"{name} cannot be read after {1 + len(_WAITS)} tries ({error})") from error
