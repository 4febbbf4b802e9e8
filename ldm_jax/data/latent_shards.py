"""Sets of latents, written shard by shard: a killed writer leaves whole shards, and the next goes on behind them.

A shard is written beside its place, brought to the disk and renamed; a seal with its checksum and its share of the
statistics follows. Only a shard with a seal counts. When all are there, the manifest takes in the seals. Until then
`unfinished.json` says what the set is going to be. Several processes share the work by shards: process k of n writes
every n-th, from k on.
"""

import contextlib
import itertools
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TypeAlias

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from ldm_jax.data.latent_manifest import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    Recipe,
    Shard,
    faults,
    found_recipe,
    read_manifest,
    read_shard_seal,
    recipe_differences,
    seal_path,
    shard_path,
    write_manifest,
    write_unfinished,
)
from ldm_jax.data.latent_records import Layout
from ldm_jax.data.latent_statistics import LatentSums
from ldm_jax.data.source import Example
from ldm_jax.errors import UserError
from ldm_jax.files.folders import alone_in, seen
from ldm_jax.files.whole_files import file_checksum, write_sealed
from ldm_jax.progress import progress

Encode: TypeAlias = Callable[[Sequence[int]], Iterator[Example]]
"""The examples at some indices of a source, in this order, with the arrays of a layout."""

_SHARED = "it has to be one folder that all processes see: choose another"
_WRITER_OPTIONS = "group_size:1,uncompressed"  # random access by record; floating-point noise does not compress
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the work is this process's; alone, it is all of it."""

    index: int = 0
    count: int = 1
    meet: Callable[[str], None] = lambda task: None
    """Returns when all have called it, to begin the task that it is told."""
    advance: Callable[[], None] = lambda: None
    """Called whenever this process has got on with its part of a task, of which others may have less."""


def write_latents(folder: Path, recipe: Recipe, layout: Layout, encode: Encode, share: Share | None = None) -> None:
    """Write a set of latents, or what is missing of it; all processes that share the work call this.

    Of a finished set the shards are compared with their checksums, and damaged ones are written again.

    Args:
        folder: of the set.
        recipe: what the set holds.
        layout: what each record holds.
        encode: gives the examples of shards that are not there yet; is called once.
        share: the part of this process.

    Raises:
        UserError: the folder holds latents made in another way, another process writes them, it cannot be written, or
            the processes do not see the same one.
    """
    share = share or Share()
    with _alone_in(folder) if share.index == 0 else contextlib.nullcontext():
        if share.index == 0:
            _begin(folder, recipe, share)
        share.meet(f"encoding {recipe.info.name}/{recipe.info.split} into latents")
        if not _is_finished(folder):
            _write_missing(folder, recipe, layout, encode, share)
        share.meet("writing the manifest of the latents")
        if share.index == 0:
            _finish(folder, recipe, layout, share)
        share.meet("opening the latents that all have written")


def _alone_in(folder: Path) -> contextlib.AbstractContextManager[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write latents to {folder} ({error.strerror}); choose another folder") from error
    return alone_in(folder, f"another process is writing latents to {folder}; wait for it, or end it")


def clear_others(folder: Path, recipe: Recipe) -> None:
    """Remove the set in a folder of a cache, unless it holds what `recipe` says, or a part of that."""
    try:
        if not folder.exists() or ((found := found_recipe(folder)) and not recipe_differences(found, recipe)):
            return
        _log.info("%s holds other latents: they are encoded again", folder)
    except UserError as error:
        _log.warning("%s: they are encoded again", error)
    shutil.rmtree(folder, ignore_errors=True)


def _is_finished(folder: Path) -> bool:
    """Whether a set that process 0 has begun has its manifest."""
    there = seen(lambda: [name for name in (MANIFEST, UNFINISHED) if (folder / name).exists()])
    if not there:
        raise UserError(
            f"process 0 has begun the latents in {folder}, and they are not there for this process; {_SHARED}"
        )
    return MANIFEST in there


def _begin(folder: Path, recipe: Recipe, share: Share) -> None:
    """Find out what is there, and say what is going to be."""
    found = found_recipe(folder)
    if found is None:
        if {path.name for path in folder.iterdir()} - {f"{UNFINISHED}.tmp"}:
            raise UserError(f"{folder} is not empty and holds no latents; choose another folder")
        with _writable(folder):
            write_unfinished(folder, recipe)
    elif changed := recipe_differences(found, recipe):
        listing = "\n  ".join(changed)
        raise UserError(f"{folder} holds other latents:\n  {listing}\nnothing was changed; choose another folder")
    elif (folder / MANIFEST).exists():
        with _writable(folder):
            _reopen_damaged(folder, read_manifest(folder), share)


def _reopen_damaged(folder: Path, manifest: Manifest, share: Share) -> None:
    """Make a finished set with damaged shards an unfinished one without them."""
    damaged = dict(faults(folder, manifest, contents=True, advance=share.advance))
    if not damaged:
        _log.info("%s: all %d shards are there and whole", folder, len(manifest.shards))
        return
    for index, shard in enumerate(manifest.shards):
        fault = damaged.pop(shard_path(folder, index), None)
        if fault is None:
            write_sealed(seal_path(folder, index), asdict(shard))
            continue
        _log.warning("%s %s", shard_path(folder, index), fault)
        shard_path(folder, index).unlink(missing_ok=True)
        seal_path(folder, index).unlink(missing_ok=True)  # there may be one of before the set was finished
    for path, fault in damaged.items():
        raise UserError(f"{path} {fault}")
    write_unfinished(folder, manifest.recipe)
    (folder / MANIFEST).unlink()


def _write_missing(folder: Path, recipe: Recipe, layout: Layout, encode: Encode, share: Share) -> None:
    own = range(share.index, recipe.num_shards, share.count)
    missing = [index for index in own if read_shard_seal(folder, index) is None]
    if not missing:
        return
    total, left = (sum(len(recipe.rows(index)) for index in part) for part in (own, missing))
    whose = "" if share.count == 1 else f", the share of process {share.index} of {share.count}"
    _log.info("encoding %d of %d pictures of %s/%s%s", left, total, recipe.info.name, recipe.info.split, whose)
    examples = encode([row for index in missing for row in recipe.rows(index)])
    with progress(f"encoding{whose}", total, "picture", done=total - left, silent=share.index != 0) as bar:

        def advance() -> None:
            bar.update()
            share.advance()

        for index in missing:
            _write_shard(folder, index, layout, itertools.islice(examples, len(recipe.rows(index))), advance)


def _write_shard(
    folder: Path, index: int, layout: Layout, examples: Iterator[Example], advance: Callable[[], None]
) -> None:
    path = shard_path(folder, index)
    temporary = path.with_name(path.name + ".tmp")
    sums: list[LatentSums] = []
    with _writable(path):
        temporary.unlink(missing_ok=True)  # a writer that was interrupted in this process may hold it open
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    for example in examples:
        with _writable(path):
            writer.write(layout.pack(example))
        sums.append(LatentSums.of(example["moments"]))
        advance()
    with _writable(path):
        writer.close()
        size, checksum = file_checksum(temporary, sync=True)
        temporary.replace(path)
        shard = Shard(records=len(sums), size=size, checksum=checksum, sums=reduce(add, sums))
        write_sealed(seal_path(folder, index), asdict(shard))


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record's own are of the second kind
        raise UserError(f"cannot write latents to {path} ({error}); free space or permit writing") from error


def _finish(folder: Path, recipe: Recipe, layout: Layout, share: Share) -> None:
    """Take the seals into the manifest, and remove them."""
    indices = range(recipe.num_shards)
    if not (folder / MANIFEST).exists():
        shards = tuple(_written(folder, index, share) for index in indices)
        write_manifest(folder, Manifest(recipe=recipe, layout=layout, shards=shards))
    for path in (folder / UNFINISHED, *(seal_path(folder, index) for index in indices)):
        path.unlink(missing_ok=True)
        share.advance()


def _written(folder: Path, index: int, share: Share) -> Shard:
    """The seal of a shard that some process has written."""
    share.advance()
    if (shard := seen(lambda: read_shard_seal(folder, index))) is None:
        raise UserError(
            f"process {index % share.count} has written {shard_path(folder, index)}, and it is not there for process "
            f"{share.index}; {_SHARED}"
        )
    return shard
