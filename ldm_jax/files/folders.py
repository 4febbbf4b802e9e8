"""Folders into which a program writes: empty ones, and those that it has to itself."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ldm_jax.errors import UserError

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_WAITS = (0.5, 2.0, 5.0)


def seen(find: Callable[[], Found]) -> Found:
    """What is found of another process's work: tried again for the seconds that a network disk may take to show it.

    As soon as it is truthy; if it never is, what is found last.
    """
    found = find()
    for wait in _WAITS:
        if found:
            break
        time.sleep(wait)
        found = find()
    return found


def require_empty(folder: Path) -> None:
    """Refuse to write among files that are there already.

    Raises:
        UserError: the folder has something in it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder")


@contextlib.contextmanager
def alone_in(folder: Path, refusal: str) -> Iterator[None]:
    """Be the only program that writes to a folder; the system unlocks it when this one ends, however it ends.

    Raises:
        UserError: another one does; `refusal` says what it does there, and what to do.
        OSError: there is no such folder, or it may not be read.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        except OSError as error:  # a file system without locks
            logger.info("%s cannot be locked (%s)", folder, error)
        yield
    finally:
        os.close(handle)
