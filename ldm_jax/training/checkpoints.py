"""Checkpoints that are complete or not there: written by Orbax in the background, sealed with checksums, then verified.

A checkpoint of step s is the folder `s/` and, once that is complete, its seal `s.json` (see `seals`): Orbax itself
notices neither a flipped bit nor a half-deleted folder. A folder without a seal was interrupted and does not count;
one that contradicts its seal is damaged, is named, and an older one is used. One that cannot be read is passed over,
too, and stays. Old ones lose their seal first and their folder second, so being killed in between leaves nothing that
looks whole. Nothing goes by a clock: steps are the order.

With several processes the first one verifies, seals and deletes, and the others follow what it decides.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ldm_jax.errors import UserError, is_out_of_memory
from ldm_jax.files.places import Place, is_local
from ldm_jax.training.checkpoint_contents import read_tree
from ldm_jax.training.keep_policy import KeepPolicy
from ldm_jax.training.seals import (
    DamagedCheckpoint,
    Seal,
    UnreadableCheckpoint,
    check_files,
    read_seal,
    seal_files,
    write_seal,
)

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage of a run, in one folder."""

    def __init__(self, directory: Place, keep: KeepPolicy) -> None:
        """Use `directory`, keeping what the policy wants; nothing is touched before the first save."""
        place = epath.Path(directory)
        self.directory = place.absolute() if is_local(place) else place
        self.keep = keep
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._damaged: set[int] = set()
        """They contradict their seals, and go when a new one is complete."""
        self._unreadable: set[int] = set()
        """They could not be read now, and stay."""

    def steps(self) -> list[int]:
        """Steps with a sealed checkpoint, oldest first; it may still turn out damaged."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.stem) for p in self.directory.iterdir() if p.suffix == ".json" and p.stem.isdecimal())

    def unsealed(self) -> list[int]:
        """Steps whose folder has no seal: saving or deleting them was interrupted, or is still going on."""
        if not self.directory.is_dir():
            return []
        names = {path.name for path in self.directory.iterdir()}
        return sorted(int(name) for name in names if name.isdecimal() and f"{name}.json" not in names)

    def seal(self, step: int) -> Seal:
        """What is known of a checkpoint without reading it; raises DamagedCheckpoint where `read_seal` does."""
        return read_seal(self._seal(step), step)

    def folder(self, step: int) -> epath.Path:
        """Where the arrays of a checkpoint lie."""
        return self.directory / f"{step:08d}"

    def save(self, step: int, items: dict[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Start to save `items` (trees of arrays by name) as `step`; returns once the arrays are copied.

        Waits for a save in progress: no request is dropped. A step that is already there is left as it is, unless
        `restore_newest` found it damaged; what it found damaged goes when a new checkpoint is complete.

        Args:
            step: its number.
            items: what to save.
            metrics: what was measured at this step; the policy may go by it.

        Raises:
            UserError: the folder cannot be written, or the save before this one failed.
        """
        self.wait()
        if _agreed(step in self.steps() and step not in self._damaged | self._unreadable):
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                self._seal(step).unlink(missing_ok=True)
            self._damaged.discard(step)
            self._unreadable.discard(step)
            context = ocp.Context()
            context.asynchronous.timeout_secs = _longest_save()
            with context:
                response = ocp.save_checkpointables_async(str(self.folder(step)), items, overwrite=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._writer = threading.Thread(target=self._finish, args=(step, response, metrics or {}), name=f"seal-{step}")
        self._writer.start()

    def wait(self) -> None:
        """Return when the save in progress, if any, is complete and sealed; raises what `save` raises."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise self._cannot_write(failure) from failure

    def restore_newest(self, abstract: dict[str, Any], *, in_part: bool = False) -> tuple[int, dict[str, Any]] | None:
        """Step and items of the newest checkpoint that is whole, or None when there is none at all.

        `abstract` gives name, structure, shape, dtype and sharding of what is wanted; it may leave items out, and
        `in_part` branches of items too.

        Raises:
            UserError: there are checkpoints, and every one is damaged or cannot be read.
            MemoryError, RuntimeError: there is too little memory for them.
        """
        while (step := self._newest_whole()) is not None:
            items = self._load_together(step, abstract, in_part)
            if items is not None:
                return step, items
        if _agreed(bool(steps := self.steps())):
            unreadable = sorted(self._unreadable)
            how = f"damaged or cannot be read (steps {unreadable})" if unreadable else "damaged"
            raise UserError(
                f"every checkpoint in {self.directory} is {how} (steps {steps}); restore the folder from a copy, "
                "or train into another folder with --run-dir"
            )
        return None

    def restore(self, step: int, abstract: dict[str, Any], *, in_part: bool = False) -> dict[str, Any]:
        """Items of one checkpoint, verified first, as `restore_newest` has them.

        Raises:
            DamagedCheckpoint: it contradicts its seal, or its arrays are not those of `abstract`.
        """
        self.verify(step)
        return self._load(step, abstract, in_part)

    def verify(self, step: int, *, contents: bool = True) -> None:
        """Compare a checkpoint with its seal; without `contents` the names and sizes of its files alone.

        Raises:
            DamagedCheckpoint: naming the first file that is missing, unexpected, of another size or of other content.
        """
        check_files(self.folder(step), self.seal(step), contents=contents)

    def remove_unfinished(self) -> None:
        """Delete what interrupted saves and deletions left behind."""
        if jax.process_index() != 0 or not self.directory.is_dir():
            return
        sealed = {self.folder(step).name for step in self.steps()}
        for step in self.unsealed():
            logger.warning(
                "checkpoint %s has no seal: saving or deleting it was interrupted; it is removed", self.folder(step)
            )
        for path in list(self.directory.iterdir()):
            if path.is_dir() and path.name not in sealed:
                _remove(path)

    def _newest_whole(self) -> int | None:
        """The newest step that is verified, as the first process finds it; others take its word for it."""
        found = -1
        if jax.process_index() == 0:
            found = next((step for step in reversed(self.steps()) if self._is_whole(step)), -1)
        step = _agreed(found)
        return None if step < 0 else step

    def _is_whole(self, step: int) -> bool:
        if step in self._damaged | self._unreadable:
            return False
        try:
            self.verify(step)
        except DamagedCheckpoint as error:
            self._set_aside(step, error)
            return False
        return True

    def _load_together(self, step: int, abstract: dict[str, Any], in_part: bool) -> dict[str, Any] | None:
        """The items, or None if any process could not read them."""
        items = None
        try:
            items = self._load(step, abstract, in_part)
        except DamagedCheckpoint as error:
            self._set_aside(step, error)
        if _all_agree(items is not None):
            return items
        if step not in self._damaged:  # another process could not
            self._unreadable.add(step)
        return None

    def _load(self, step: int, abstract: dict[str, Any], in_part: bool) -> dict[str, Any]:
        folder = self.folder(step)
        there = read_tree(folder) if in_part else {}
        asked = {item: _with_placeholders(wanted, there.get(item)) for item, wanted in abstract.items()}
        try:
            items = ocp.load_checkpointables(str(folder), asked)
        except Exception as error:  # Orbax raises a different class for each fault and hides the reason in the cause
            reason = error.__cause__ or error
            if is_out_of_memory(reason) or is_out_of_memory(error):
                raise reason from None
            raise UnreadableCheckpoint(f"checkpoint {folder} cannot be read: {reason}") from error
        return _without_placeholders(items, abstract) if in_part else items

    def _set_aside(self, step: int, error: DamagedCheckpoint) -> None:
        logger.warning("%s; looking for an older one", error)
        (self._unreadable if isinstance(error, UnreadableCheckpoint) else self._damaged).add(step)

    def _seal(self, step: int) -> epath.Path:
        return self.directory / f"{step:08d}.json"

    def _cannot_write(self, error: BaseException) -> UserError:
        return UserError(
            f"cannot write a checkpoint to {self.directory} ({error}); check the permissions and the free space, "
            "then run the same command again"
        )

    def _finish(self, step: int, response: Any, metrics: Mapping[str, float]) -> None:  # an ocp.AsyncResponse
        try:
            response.result()
            if jax.process_index() == 0:
                self._write_seal(step, metrics)
                self._delete_old()
        except BaseException as error:  # handed to the main thread by wait()
            self._failure = error

    def _write_seal(self, step: int, metrics: Mapping[str, float]) -> None:
        files = seal_files(self.folder(step))
        write_seal(self._seal(step), Seal(step=step, files=files, metrics=metrics, time=time.time()))

    def _delete_old(self) -> None:
        metrics = {step: self._metrics(step) for step in self.steps() if step not in self._damaged}
        for step in self._damaged | (set(metrics) - self.keep.kept(metrics)):
            self._delete(step)
        self._damaged = set()

    def _metrics(self, step: int) -> Mapping[str, float]:
        try:
            return self.seal(step).metrics
        except DamagedCheckpoint as error:
            logger.warning("%s; it does not count among the best", error)
            return {}

    def _delete(self, step: int) -> None:
        self._seal(step).unlink(missing_ok=True)
        _remove(self.folder(step))


def _longest_save() -> int:
    """Seconds that a save may take. Orbax counts them by the clock, which may jump; among processes it waits for each
    other in milliseconds of 32 bits."""
    return 10**9 if jax.process_count() == 1 else 20 * 24 * 3600


def _agreed(value: int) -> int:
    """What the first process says; the same value in all."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _all_agree(value: bool) -> bool:
    """Whether it is true in every process."""
    return value if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.bool_(value))))


def _remove(folder: epath.Path) -> None:
    """Delete a folder; what cannot be deleted now has no seal, and is tried again when the run goes on."""
    with contextlib.suppress(OSError):
        folder.rmtree(missing_ok=True)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a (possibly abstract) tree together with a tree of shardings, for restoring."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings)


def _with_placeholders(wanted: Any, there: Any) -> Any:
    """What is wanted of a tree, and in place of its other branches that are there what is not read."""
    if not (isinstance(wanted, dict) and isinstance(there, dict)):
        return wanted
    left = {name: jax.tree.map(lambda _: ocp.PLACEHOLDER, part) for name, part in there.items() if name not in wanted}
    return left | {name: _with_placeholders(part, there.get(name)) for name, part in wanted.items()}


def _without_placeholders(found: Any, wanted: Any) -> Any:
    """Inverse of `_with_placeholders`."""
    if not isinstance(wanted, dict):
        return found
    return {name: _without_placeholders(found[name], part) for name, part in wanted.items()}
