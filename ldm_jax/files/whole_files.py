"""Files that are written whole or not at all, and the checksums by which a later change is noticed."""

import json
import os
import zlib
from typing import Any

from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place, is_local

_CHUNK = 1 << 22


def write_atomically(path: Place, text: str) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part."""
    if not is_local(path):
        path.write_text(text)  # an object appears when it is complete
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_checksum(path: Place, *, sync: bool = False) -> list[int]:
    """Size and CRC-32 of a file; `sync` also makes sure that it is on the disk."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        if sync:
            os.fsync(file.fileno())
    return [size, crc]


def write_sealed(path: Place, values: dict[str, Any]) -> None:
    """Write a JSON object with its own checksum under `crc32`, whole or not at all; its last byte counts too."""
    write_atomically(path, json.dumps({**values, "crc32": json_checksum(values)}, indent=1))


def read_sealed(path: Place) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, no object, or has changed since it was written.
    """
    values = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} where an object belongs")
    if values.pop("crc32", None) != json_checksum(values):
        raise ValueError("it has changed since it was written")
    return values


def json_checksum(values: Any) -> int:
    """CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
