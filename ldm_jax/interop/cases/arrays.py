"""The arrays of a parity case."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ldm_jax.errors import UserError


class Arrays(dict[str, np.ndarray]):
    """Arrays by name; asking for one that is missing is the case's fault, and names it."""

    def __missing__(self, name: str) -> np.ndarray:
        """Refuse: the case has no such array."""
        raise UserError(f"the case has no array {name!r}; it has {', '.join(sorted(self)) or 'none'}")


def read_arrays(path: Path) -> Arrays:
    """Every array of an .npz file.

    Raises:
        UserError: the file is missing or damaged, or holds objects instead of numbers.
    """
    try:
        with np.load(path) as file:
            return Arrays(file)
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as arrays ({error}); restore it from a copy") from None
