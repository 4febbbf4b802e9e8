"""What a measurement depends on besides the programs: machine, date, versions, load and the command."""

import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

from ldm_jax.allocator import are_huge_pages_used
from ldm_jax.manifest import processor


def circumstances(**choices: Any) -> dict[str, Any]:
    """The lines at the head of a report, with the choices of the command."""
    load = f"{os.getloadavg()[0]:.2f} in the last minute" if hasattr(os, "getloadavg") else "not known"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": f"{processor()}, {usable_cores()} cores, {platform.platform()}",
        "load": load,
        "huge pages": "asked for, on every side" if are_huge_pages_used() else "not asked for",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        **choices,
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
