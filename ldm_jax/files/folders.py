"""Folders that are written for other systems."""

from pathlib import Path

from ldm_jax.errors import UserError


def require_empty(folder: Path) -> None:
    """Refuse to write among files that are there already.

    Raises:
        UserError: the folder has something in it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder")
