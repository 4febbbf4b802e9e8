"""Memory in pages of 2 MiB, where Linux gives them to programs that ask.

XLA takes the temporary memory of each step anew from the C library, hundreds of MiB, and the system fills them with
zeros page by page: at 4 KiB each a quarter of a small model's training step on a CPU went into that, at 2 MiB it does
not show (docs/performance.md). glibc asks for such pages if a variable says so that it reads when a program starts.
"""

import os
import sys
from pathlib import Path

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_STATE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Begin this program again with huge pages asked for, unless they were, or the system does not wait to be asked.

    Nothing may have been read from stdin and no thread started. The environment has the last word:
    GLIBC_TUNABLES=glibc.malloc.hugetlb=0 is left as it is.
    """
    tunables = os.environ.get(_VARIABLE, "")
    if _TUNABLE in tunables or not _are_given_on_request():
        return
    wanted = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _VARIABLE: wanted})


def are_huge_pages_used() -> bool:
    """Whether this program and those it starts ask for huge pages."""
    return f"{_TUNABLE}=1" in os.environ.get(_VARIABLE, "")


def _are_given_on_request() -> bool:
    """Whether the system is set to give huge pages on request, and the C library is one that can ask (glibc 2.35)."""
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
        version = tuple(int(number) for number in library.removeprefix("glibc ").split(".")[:2])
        return version >= (2, 35) and "[madvise]" in _STATE.read_text()
    except (AttributeError, OSError, ValueError):  # no such name, no such file, no glibc: not this system
        return False
