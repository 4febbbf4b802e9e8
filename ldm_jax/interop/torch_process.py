"""Starts the PyTorch side of `ldm parity --layers`, and what comes back from it.

PyTorch runs in a process of its own: the package never imports it, and its memory and threads are gone before ours
begin. `torch_layers` tells what its files hold.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ldm_jax.errors import UserError
from ldm_jax.interop.cases.arrays import Arrays, read_arrays

DType = Literal["float32", "bfloat16"]
Kind = Literal["layer", "output", "cotangent", "parameter", "input"]
PACKAGES = ("torch", "diffusers", "transformers")
"""What the PyTorch side imports, the `parity` extra."""


class Recording(Arrays):
    """Everything that PyTorch has recorded of a pass, by `KIND/NAME`, in its order."""

    def of_kind(self, kind: Kind) -> dict[str, np.ndarray]:
        """The arrays of a kind by name."""
        return {name.removeprefix(f"{kind}/"): x for name, x in self.items() if name.startswith(f"{kind}/")}


def require_parity_extra() -> None:
    """Refuse to begin without the packages of the PyTorch side.

    Raises:
        UserError: one of them is not installed.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--layers runs the PyTorch original, which needs {', '.join(missing)}: pip install -e '.[parity]'"
        )


def run_torch(
    folder: Path,
    torch_class: str,
    inputs: Mapping[str, np.ndarray],
    exchange: Path,
    *,
    dtypes: Sequence[DType],
    gradient: bool,
) -> None:
    """Run the original in `folder` on `inputs`, and leave in `exchange` what `read_recording` reads.

    Raises:
        UserError: it has failed; the message ends with what it said last.
    """
    arrays: Any = dict(inputs)
    np.savez(exchange / "inputs.npz", **arrays)
    program = str(Path(__file__).with_name("torch_layers.py"))
    # -P keeps the package's folder off the path, where its files would hide others of the same name.
    command = [sys.executable, "-P", program, str(folder), str(exchange), torch_class, ",".join(dtypes)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command += ["--gradient"] if gradient else []
    result = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = result.stderr.strip().splitlines()
        raise UserError(f"{folder}: PyTorch's {torch_class} has failed: {said[-1] if said else result.returncode}")


def read_recording(exchange: Path, dtype: DType) -> Recording:
    """What PyTorch has recorded in one type of numbers."""
    return Recording(read_arrays(exchange / f"{dtype}.npz"))
