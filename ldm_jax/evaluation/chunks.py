"""Results kept on disk part by part, so that what was interrupted goes on, and what is known is not computed again.

A set of parts has a folder named after its fingerprint; part i holds the rows from i * size on. A part is written whole
or not at all, is computed again if it is damaged or has other rows than are asked for, and never mixed with those of
another fingerprint. Process p of P computes the parts with i mod P = p; then all of them read all.
"""

import functools
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Shaped

from ldm_jax.data.preparation import digest
from ldm_jax.errors import UserError
from ldm_jax.evaluation.npz_files import write_npz
from ldm_jax.manifest import circumstances
from ldm_jax.progress import progress
from ldm_jax.training.processes import advance, barrier, note

logger = logging.getLogger(__name__)

Part = dict[str, Shaped[np.ndarray, "..."]]


@functools.cache
def _versions() -> list[object]:
    """What numbers may depend on, and is the same in all processes of a run."""
    now = circumstances()
    return [now["packages"], now["xla"], {name: now["flags"].get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}]


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """The parts of one result."""

    folder: Path
    fingerprint: str
    size: int

    def file(self, start: int) -> Path:
        """Where the part that begins at a row is kept: by what it is of, and by the versions that compute it."""
        return self.folder / digest([self.fingerprint, _versions()])[:32] / f"{start:08d}.npz"

    def load(self, start: int, stop: int) -> Part | None:
        """The part with these rows, if it is there and whole."""
        file = self.file(start)
        if not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as content:
                part = {name: content[name] for name in content.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s is damaged and is computed again (%s)", file, error)
            return None
        fits = bool(part) and all(len(rows) >= stop - start for rows in part.values())
        return {name: rows[: stop - start] for name, rows in part.items()} if fits else None

    def part(self, start: int, stop: int, compute: Callable[[int, int], Part]) -> Part:
        """The part with these rows, computed and kept unless it is there."""
        if (found := self.load(start, stop)) is not None:
            return found
        part = compute(start, stop)
        write_npz(self.file(start), part)
        return part

    def rows(self, start: int, stop: int, count: int, compute: Callable[[int, int], Part]) -> Part:
        """The rows from one up to another of `count`, out of the parts that hold them."""
        begins = range(start // self.size * self.size, stop, self.size)
        parts = [self.part(begin, min(begin + self.size, count), compute) for begin in begins]
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: rows[start - begins[0] : stop - begins[0]] for name, rows in found.items()}


def all_parts(
    chunks: Chunks,
    count: int,
    compute: Callable[[int, int], Part],
    *,
    what: str,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Part:
    """Every row of a result, from the parts that are there and those that are computed now.

    Raises:
        UserError: a part of another process is not there, so the folder is not one that all of them see.
    """
    index = jax.process_index() if process_index is None else process_index
    processes = jax.process_count() if process_count is None else process_count
    starts = list(range(0, count, chunks.size))
    note(f"computing its parts of {what}", "longest")  # they may be there already, or take long
    with progress(what, count, "picture", silent=index != 0) as bar:
        parts = {}
        for i, start in enumerate(starts):
            stop = min(start + chunks.size, count)
            if i % processes == index:
                parts[start] = chunks.part(start, stop, compute)
            bar.update(stop - start)
            advance()
    barrier("parts", "reading what the others have computed")
    for start in starts:
        if start not in parts:
            found = chunks.load(start, min(start + chunks.size, count))
            if found is None:
                raise UserError(
                    f"{chunks.file(start)} of another process is not there; name a folder that all processes see: "
                    "--out DIR, and $LDM_JAX_CACHE for references"
                )
            parts[start] = found
    return {name: np.concatenate([parts[start][name] for start in starts]) for name in parts[0]}
