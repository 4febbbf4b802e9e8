"""How far long work has come: a bar on a terminal; elsewhere, such as in a log file, a line from time to time."""

import sys
from typing import Any, TypeAlias

from tqdm import tqdm

Progress: TypeAlias = "tqdm[Any]"

SECONDS_BETWEEN_LINES = 30.0
"""Where there is no terminal."""


def progress(what: str, total: int, unit: str, *, done: int = 0, silent: bool = False) -> Progress:
    """A bar or lines on stderr for `total` units, of which `done` are done; entered as a context.

    `silent` shows nothing: of several processes one speaks for all.
    """
    given = {"desc": what, "total": total, "unit": unit, "initial": done, "disable": silent}
    if sys.stderr.isatty():
        return tqdm(**given, dynamic_ncols=True)
    between = SECONDS_BETWEEN_LINES
    return _Lines(**given, bar_format=_LINE, delay=between, mininterval=between, maxinterval=between, leave=False)


_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} gone, {remaining} left, {rate_fmt}{postfix}"


class _Lines(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A bar that is told anew on a line of its own, instead of over what it was before."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the line; as tqdm calls it, with an empty one at its end to wipe out what a terminal shows."""
        if text := str(self) if msg is None else msg:
            self.fp.write(f"{text}\n")
            self.fp.flush()
        return False
