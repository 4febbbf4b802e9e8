"""Latents of a whole data set as a source: what the second stage learns from in place of pictures."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from ldm_jax.config import DataConfig
from ldm_jax.config.saved import differences
from ldm_jax.data.latent_manifest import (
    UNFINISHED,
    DamagedLatents,
    Manifest,
    data_of,
    faults,
    read_manifest,
    shard_path,
)
from ldm_jax.data.patience import Unreadable, read_patiently
from ldm_jax.data.source import Example, Source, SourceInfo, Split
from ldm_jax.data.sources import load_source
from ldm_jax.data.transforms import transform_in_words
from ldm_jax.errors import UserError

_log = logging.getLogger(__name__)
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access


@dataclass(frozen=True, eq=False)
class LatentSource:
    """A source whose examples carry `moments` [flips, h, w, 2c] instead of `image`, read from shards."""

    folder: Path
    manifest: Manifest
    left_out: frozenset[str] = frozenset()
    """Arrays that were stored and that examples shall not have."""
    _readers: dict[int, Any] = field(default_factory=dict)

    @property
    def info(self) -> SourceInfo:
        """What is known of the pictures that were encoded."""
        return self.manifest.recipe.info

    def __len__(self) -> int:
        """Number of examples."""
        return self.manifest.recipe.num_pictures

    def __getitem__(self, index: int) -> Example:
        """The example at an index, with what was stored.

        Raises:
            DamagedLatents: it cannot be read; the shard is named.
        """
        example = self._read(index, self.manifest.layout.unpack)
        return {name: value for name, value in example.items() if name not in self.left_out}

    def annotation(self, index: int) -> Example:
        """The example without its arrays; raises DamagedLatents where it cannot be read."""
        return self._read(index, self.manifest.layout.annotation)

    def _read(self, index: int, unpack: Callable[[bytes], Example]) -> Example:
        shard, position = divmod(index, self.manifest.recipe.shard_size)
        name = f"record {position} of {shard_path(self.folder, shard)}"
        try:
            return read_patiently(lambda: unpack(self._record(shard, position)), name)
        except Unreadable as error:
            raise DamagedLatents(
                f"{error}: the shard is damaged, or its disk fails; the same `ldm latents encode` writes it again"
            ) from error

    def _record(self, shard: int, position: int) -> bytes:
        reader = self._readers.get(shard)
        try:
            if reader is None:  # two threads may both open it, and the later stays
                reader = self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(shard_path(self.folder, shard)), options=_READER_OPTIONS, file_reader_buffer_size=32768
                )
            return reader.read([position])[0]
        except Exception:
            self._readers.pop(shard, None)  # the next try opens the file anew
            raise


@dataclass(frozen=True, eq=False)
class WithPictures:
    """Latents whose examples carry their pictures, boxes and maps as well, of which models are given something."""

    latents: Source
    pictures: Source

    @property
    def info(self) -> SourceInfo:
        """What is known of the pictures that were encoded."""
        return self.latents.info

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.latents)

    def __getitem__(self, index: int) -> Example:
        """The example at an index."""
        return {**self.pictures[index], **self.latents[index]}

    def annotation(self, index: int) -> Example:
        """The example without its arrays."""
        return self.latents.annotation(index)


def open_latents(folder: Path) -> LatentSource:
    """Open a set whose shards are all there at their full size; their contents are checked as they are read.

    Raises:
        UserError: there is no such set, or it is unfinished.
        DamagedLatents: the manifest or a shard is damaged; the file is named.
    """
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise UserError(_why_missing(folder)) from None
    for path, fault in faults(folder, manifest, contents=False):
        raise DamagedLatents(f"{path} {fault}")
    return LatentSource(folder, manifest)


def _why_missing(folder: Path) -> str:
    if (folder / UNFINISHED).exists():
        return f"the latents in {folder} are not finished; the same `ldm latents encode` goes on with them"
    if not folder.parent.exists():
        return f"{folder.parent} does not exist; `ldm latents encode` writes such a folder"
    return f"{folder.parent} holds no latents of the {folder.name} split; write them with `ldm latents encode`"


def load_training_data(config: DataConfig, split: Split) -> Source:
    """What a run learns from: the latents that its configuration names, or else the pictures.

    Raises:
        UserError: as `load_latents` and `load_source` do.
    """
    return load_source(config, split) if config.latents is None else load_latents(config, split)


def load_latents(config: DataConfig, split: Split) -> LatentSource:
    """Open the latents of a split that `config.latents` names, and see whether they are of what `config` describes.

    No picture is opened, but where they are said to lie elsewhere than when they were encoded.

    Raises:
        UserError: as for `open_latents`, or they are of other pictures, or of pictures that were cut in another way.
    """
    folder = Path(config.latents or "").expanduser()
    source = open_latents(folder / split)
    recipe, wanted = source.manifest.recipe, data_of(config)
    found = recipe.data
    if found.horizontal_flip:  # mirror images need not be used
        found = replace(found, horizontal_flip=wanted.horizontal_flip)
    changed = [
        *differences(found, wanted, "data"),
        *differences(recipe.transform, transform_in_words(config), "transform"),
    ]
    if not changed and found.source != wanted.source:
        changed = _other_pictures(source, config, split)
    if changed:
        raise UserError(misfit(source, changed))
    return source


def _other_pictures(latents: LatentSource, config: DataConfig, split: Split) -> list[str]:
    """What differs where pictures lie elsewhere than when they were encoded: they are compared if they are here."""
    try:
        pictures = load_source(config, split)
    except UserError as error:
        _log.info("the latents in %s are taken for those of pictures that are not here: %s", latents.folder, error)
        return []
    return [*differences(latents.info.fingerprint, pictures.info.fingerprint, "fingerprint of the pictures")]


def misfit(source: LatentSource, changed: list[str]) -> str:
    """What is said of latents that were made in another way than is wanted."""
    listing = "\n  ".join(changed)
    return (
        f"the latents in {source.folder} do not fit this experiment:\n  {listing}\nencode them for it with "
        "`ldm latents encode`, or change the experiment"
    )
