"""Where a run lies: a folder of this machine, or a prefix of an object store (gs://, s3://)."""

import os
import re
from pathlib import Path
from typing import TypeAlias

os.environ.setdefault("EPATH_USE_TF", "false")  # etils would prefer TensorFlow, which is no dependency
from etils import epath

from ldm_jax.errors import UserError

Place: TypeAlias = Path | epath.Path
"""What is written in a run goes through these; both join, list, open and remove in the same words."""

REMOTE = {"gs": "gcsfs", "s3": "s3fs"}
"""Schemes of object stores, and the package with which each is reached."""


WITH_CHECKPOINTS = ("gs",)
"""Those of them that Orbax writes arrays to and reads them from."""


def to_place(text: str | Place) -> Place:
    """The folder or prefix that a text names.

    Raises:
        UserError: the text is empty, the scheme is unknown, its package is not installed, or there is no bucket.
    """
    if not str(text):
        raise UserError("an empty name is no place; name a folder or a file")
    found = re.match(r"([a-z][a-z0-9+.-]*)://", str(text))
    if found is None:
        return Path(text)
    scheme = found.group(1)
    if scheme not in REMOTE:
        known = " and ".join(f"{name}://" for name in REMOTE)
        raise UserError(f"{text}: {scheme}:// is no place known here; use a folder, or {known}")
    if not str(text)[found.end() :].strip("/"):
        raise UserError(f"{text} names no bucket; use {scheme}://BUCKET/FOLDER")
    _require_package(str(text), scheme)
    return epath.Path(text)


def require_checkpoints(place: Place) -> None:
    """Refuse a place to which no checkpoint can be written, before anything is trained.

    Raises:
        UserError: Orbax does not know the store.
    """
    scheme, _, rest = str(place).partition("://")
    if rest and scheme not in WITH_CHECKPOINTS:
        raise UserError(f"{place}: Orbax writes no checkpoints to {scheme}://; train into a folder, or gs://")


def is_local(place: Place) -> bool:
    """Whether a place is on a file system, where files can be renamed and synchronised."""
    return "://" not in str(place)


def _require_package(text: str, scheme: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{text} needs the package {REMOTE[scheme]}: pip install {REMOTE[scheme]}") from error
