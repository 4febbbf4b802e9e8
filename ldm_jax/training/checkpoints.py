"""Checkpoints that are complete or not there: written by Orbax in the background, sealed with checksums, then verified.

A checkpoint of step s is the folder `s/` and, once that is complete, its seal `s.json` with the size and CRC-32 of
every file: Orbax itself notices neither a flipped bit nor a half-deleted folder. A folder without a seal was
interrupted and does not count; one that contradicts its seal is damaged, is named, and an older one is used. Old
ones lose their seal first and their folder second, so being killed in between leaves nothing that looks whole.
"""

import json
import logging
import os
import shutil
import threading
import zlib
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ldm_jax.errors import UserError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22


class DamagedCheckpoint(UserError):
    """A checkpoint contradicts its seal or cannot be read."""


class Checkpoints:
    """The checkpoints of one stage of a run, in one folder."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Use `directory`, keeping the `keep` newest checkpoints; nothing is touched before the first save."""
        self.directory = directory.absolute()
        self.keep = keep
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Steps with a sealed checkpoint, oldest first; it may still turn out damaged."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.stem) for p in self.directory.glob("*.json") if p.stem.isdecimal())

    def save(self, step: int, items: dict[str, Any]) -> None:
        """Start to save `items` (trees of arrays by name) as `step`; returns once the arrays are copied.

        Waits for a save in progress: no request is dropped. A step that is already there is left as it is, unless
        `restore_newest` found it damaged; what it found damaged goes when a new checkpoint is complete.

        Raises:
            UserError: the folder cannot be written, or the save before this one failed.
        """
        self.wait()
        if step in self.steps() and step not in self._damaged:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                self._seal(step).unlink(missing_ok=True)
            self._damaged.discard(step)
            response = ocp.save_checkpointables_async(str(self._folder(step)), items, overwrite=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._writer = threading.Thread(target=self._finish, args=(step, response), name=f"seal-{step}")
        self._writer.start()

    def wait(self) -> None:
        """Return when the save in progress, if any, is complete and sealed; raises what `save` raises."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise self._cannot_write(failure) from failure

    def restore_newest(self, abstract: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """Step and items of the newest checkpoint that is whole, or None when there is none at all.

        `abstract` gives name, structure, shape, dtype and sharding of what is wanted; it may leave items out.

        Raises:
            UserError: there are checkpoints, and every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.restore(step, abstract)
            except DamagedCheckpoint as error:
                logger.warning("%s; looking for an older one", error)
                self._damaged.add(step)
        if steps:
            raise UserError(
                f"every checkpoint in {self.directory} is damaged (steps {steps}); restore the folder from a copy, "
                "or train into another folder with --run-dir"
            )
        return None

    def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Items of one checkpoint, verified first.

        Raises:
            DamagedCheckpoint: it contradicts its seal, or its arrays are not those of `abstract`.
        """
        self.verify(step)
        try:
            return ocp.load_checkpointables(str(self._folder(step)), abstract)
        except Exception as error:  # Orbax raises a different class for each fault and hides the reason in the cause
            reason = error.__cause__ or error
            raise DamagedCheckpoint(f"checkpoint {self._folder(step)} cannot be read: {reason}") from error

    def verify(self, step: int) -> None:
        """Compare every file of a checkpoint with its seal.

        Raises:
            DamagedCheckpoint: naming the first file that is missing, unexpected, of another size or of other content.
        """
        folder = self._folder(step)
        try:
            sealed = dict(json.loads(self._seal(step).read_text())["files"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedCheckpoint(f"the seal {self._seal(step)} cannot be read: {error}") from error
        present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        for name in sorted(present | set(sealed)):
            if name not in present:
                raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} is missing")
            if name not in sealed:
                raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} does not belong to it")
            if sealed[name] != _readable_checksum(folder / name):
                raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {name} has changed since it was written")

    def remove_unfinished(self) -> None:
        """Delete what interrupted saves and deletions left behind."""
        if not self.directory.is_dir():
            return
        sealed = {self._folder(step).name for step in self.steps()}
        for path in self.directory.iterdir():
            if path.is_dir() and path.name not in sealed:
                shutil.rmtree(path, ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def _seal(self, step: int) -> Path:
        return self.directory / f"{step:08d}.json"

    def _cannot_write(self, error: BaseException) -> UserError:
        return UserError(
            f"cannot write a checkpoint to {self.directory} ({error}); check the permissions and the free space, "
            "then run the same command again"
        )

    def _finish(self, step: int, response: Any) -> None:  # an ocp.AsyncResponse, which no run-time check can tell
        try:
            response.result()
            if jax.process_index() == 0:
                self._write_seal(step)
                self._delete_old()
        except BaseException as error:  # handed to the main thread by wait()
            self._failure = error

    def _write_seal(self, step: int) -> None:
        folder = self._folder(step)
        files = {str(p.relative_to(folder)): _checksum(p, sync=True) for p in sorted(folder.rglob("*")) if p.is_file()}
        write_atomically(self._seal(step), json.dumps({"step": step, "files": files}))

    def _delete_old(self) -> None:
        for step in self._damaged:
            self._delete(step)
        self._damaged = set()
        for step in self.steps()[: -self.keep]:
            self._delete(step)

    def _delete(self, step: int) -> None:
        self._seal(step).unlink(missing_ok=True)
        shutil.rmtree(self._folder(step), ignore_errors=True)


def _checksum(path: Path, *, sync: bool = False) -> list[int]:
    """Size and CRC-32 of a file; `sync` also makes sure that it is on the disk."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
        if sync:
            os.fsync(file.fileno())
        return [file.tell(), crc]


def _readable_checksum(path: Path) -> list[int] | None:
    """As `_checksum`; None if the disk does not give the file back."""
    try:
        return _checksum(path)
    except OSError:
        return None


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a (possibly abstract) tree together with a tree of shardings, for restoring."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings)
