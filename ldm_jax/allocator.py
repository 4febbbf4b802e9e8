"""How the C library of Linux hands out memory: in pages of 2 MiB, and from as many arenas as there are cores.

XLA takes the temporary memory of each step anew from the C library, hundreds of MiB, and the system fills them with
zeros page by page: at 4 KiB each a quarter of a small model's training step on a CPU went into that, at 2 MiB it does
not show (docs/performance.md).

Every thread takes memory from one of the arenas, eight for each core if nothing is said. Saving starts dozens of
threads anew each time: what they have freed in one arena is of no use to those that come to another, and the program
grows for hours until all arenas are as large as the largest save (docs/scale.md).

glibc reads both from a variable when a program starts.
"""

import os
import sys
from pathlib import Path

_VARIABLE, _HUGE_PAGES, _ARENAS = "GLIBC_TUNABLES", "glibc.malloc.hugetlb", "glibc.malloc.arena_max"
_BEGUN_AGAIN = "LDM_JAX_BEGUN_AGAIN"
_STATE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def tune_allocator() -> None:
    """Begin this program again with these settings, unless they are made, or the C library knows none.

    Nothing may have been read from stdin and no thread started. The environment has the last word:
    GLIBC_TUNABLES=glibc.malloc.hugetlb=0:glibc.malloc.arena_max=64 is left as it is, and MALLOC_ARENA_MAX too.
    """
    given = os.environ.get(_VARIABLE, "")
    wanted = [f"{name}={value}" for name, value in _settings().items() if name not in given]
    begun_again = os.environ.pop(_BEGUN_AGAIN, None)  # a Python with privileges of its own never sees the settings
    if wanted and begun_again is None:
        environment = {_VARIABLE: ":".join(filter(None, [given, *wanted])), _BEGUN_AGAIN: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})


def are_huge_pages_used() -> bool:
    """Whether this program and those it starts ask for huge pages."""
    return f"{_HUGE_PAGES}=1" in os.environ.get(_VARIABLE, "")


def _settings() -> dict[str, int]:
    """What is set on this system: huge pages where they are given on request, and asked for (glibc 2.35)."""
    version = _glibc()
    arenas = {_ARENAS: os.cpu_count() or 1} if version >= (2, 26) and "MALLOC_ARENA_MAX" not in os.environ else {}
    return ({_HUGE_PAGES: 1} if version >= (2, 35) and _are_given_on_request() else {}) | arenas


def _glibc() -> tuple[int, ...]:
    """Version of the C library; empty for another than glibc."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(map(int, version.split(".")[:2])) if name == "glibc" else ()
    except (AttributeError, OSError, ValueError):  # no such function, no such name: not this system
        return ()


def _are_given_on_request() -> bool:
    try:
        return "[madvise]" in _STATE.read_text()
    except OSError:
        return False
