"""Seals: what a complete checkpoint consists of, written beside it last; a checkpoint without one does not count.

A seal holds the size and CRC-32 of every file, the metrics of the step, the time, and a CRC-32 of itself. On a disk
it replaces what was there in one move; in an object store, where an object appears whole or not at all, it is put.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from etils import epath

from ldm_jax.data.patience import Unreadable, read_patiently
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place, is_local
from ldm_jax.files.whole_files import file_checksum, json_checksum, write_sealed


class DamagedCheckpoint(UserError):
    """A checkpoint contradicts its seal or cannot be read."""


class UnreadableCheckpoint(DamagedCheckpoint):
    """A checkpoint cannot be read now; whether it is damaged is not known."""


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What is known of a complete checkpoint without reading it."""

    step: int
    files: Mapping[str, list[int]]
    """Size and CRC-32 of each file, by its path in the checkpoint."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Held-out metrics of this step; empty if none were measured."""
    time: float | None = None
    """When it was saved, in seconds since 1970: told to people, and never compared."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())


def write_seal(path: Place, seal: Seal) -> None:
    """Write a seal whole or not at all."""
    values = {"step": seal.step, "time": seal.time, "metrics": dict(seal.metrics), "files": dict(seal.files)}
    write_sealed(path, values)


def read_seal(path: Place, step: int) -> Seal:
    """The seal of the checkpoint of `step`.

    Raises:
        DamagedCheckpoint: it is missing, has changed since it was written, or belongs to another step.
    """
    try:
        values = parse_json(path.read_text())
        crc = values.pop("crc32", None)
        if crc != json_checksum(values) and set(values) != {
            "step",
            "files",
        }:  # as it was before seals sealed themselves
            raise ValueError("it has changed since it was written")
        files = {name: [int(size), int(crc)] for name, (size, crc) in values.pop("files").items()}
        seal = Seal(**values, files=files)
        if seal.step != step:
            raise ValueError(f"it belongs to step {seal.step}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"the seal {path} cannot be read: {error}") from error
    return seal


def seal_files(folder: Place) -> dict[str, list[int]]:
    """Size and CRC-32 of every file of a complete checkpoint, each of them brought to the disk.

    Raises:
        OSError: there are none, or the disk fails.
    """
    files = {name: file_checksum(folder / name, sync=is_local(folder)) for name in files_in(folder)}
    if not files:
        raise FileNotFoundError(f"{folder} has vanished while it was written")
    return files


def check_files(folder: Place, seal: Seal, *, contents: bool = True) -> None:
    """Compare every file of a checkpoint with its seal; without `contents` names and sizes alone.

    Raises:
        DamagedCheckpoint: naming the first file that is missing, unexpected, of another size or of other content.
        UnreadableCheckpoint: naming the first that cannot be read, however often it is tried.
    """
    present = set(files_in(folder))
    for name in sorted(present | set(seal.files)):
        if name not in present:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} is missing")
        if name not in seal.files:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} does not belong to it")
        try:
            found = read_patiently(functools.partial(_look_at, folder / name, contents=contents), str(folder / name))
        except Unreadable as error:
            raise UnreadableCheckpoint(f"checkpoint {folder}: {error}") from error
        if found != seal.files[name][: len(found)]:
            raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} has changed since it was written")


def files_in(folder: Place) -> Iterator[str]:
    """Every file below a folder, as a path relative to it, sorted; nothing if there is no such folder."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                yield from (f"{path.name}/{name}" for name in files_in(path))
            else:
                yield path.name


def _look_at(path: Place, *, contents: bool) -> list[int]:
    """Size and, if wanted, CRC-32 of a file; raises OSError if the disk does not give it back."""
    return file_checksum(path) if contents else [_size(path)]


def _size(path: Place) -> int:
    # etils looks up the owner too, who need not be known where a container runs
    return path.stat().length if isinstance(path, epath.Path) and not is_local(path) else os.stat(path).st_size
