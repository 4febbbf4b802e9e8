"""What is known of a set of latents without reading it: from what and how they were made, their shards, their spread.

A set is a folder with `manifest.json` and the shards that it names. The manifest is written last, so that a set that
has one is complete.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from ldm_jax.config import AutoencoderConfig, ClipTextConditioning, DataConfig, SdxlConditioning
from ldm_jax.config.saved import differences, from_dict, to_dict
from ldm_jax.data.latent_records import ArrayField, Layout
from ldm_jax.data.latent_statistics import LatentSums
from ldm_jax.data.source import SourceInfo
from ldm_jax.errors import UserError
from ldm_jax.files.whole_files import file_checksum, read_sealed, write_sealed

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
"""The recipe of a set that has no manifest yet."""
VERSION = 2

_MEND = "the same `ldm latents encode` writes it again"


class DamagedLatents(UserError):
    """A set of latents contradicts its manifest, or cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """From what and how latents are made: sets with the same recipe hold the same latents."""

    info: SourceInfo
    """The pictures: name, split, fingerprint, classes."""
    num_pictures: int
    data: DataConfig
    """How they are read, cut and mirrored."""
    transform: str
    """The same in words that change when the code does."""
    crop_seed: int | None = None
    """Seed of where each picture was cut, if that was drawn."""
    autoencoder: str
    """SHA-256 (hex) of the parameters of the autoencoder."""
    autoencoder_config: AutoencoderConfig
    """What it does with them, as `autoencoder_form` writes it."""
    compute_dtype: str
    """Type of its convolutions."""
    texts: str | None = None
    """SHA-256 (hex) of the parameters of the text encoder whose embeddings of the captions are there, too, and of its
    tokenizer."""
    conditioning: ClipTextConditioning | SdxlConditioning | None = None
    """What it does with them, as `embedding_form` writes it."""
    has_sizes: bool = False
    """Whether each record tells how its picture was cut."""
    shard_size: int
    """Pictures in each shard but the last."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_pictures // self.shard_size)

    def rows(self, shard: int) -> range:
        """The pictures of a shard, as indices of the source."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_pictures))

    def as_json(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return {**vars(self), "info": asdict(self.info), **{name: to_dict(getattr(self, name)) for name in _CONFIGS}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Recipe":
        """Inverse of `as_json`."""
        info = values["info"]
        names = {name: tuple(info.get(name, ())) for name in ("class_names", "object_names")}
        info = SourceInfo(**{**info, **names})
        return cls(**{**values, "info": info, **{name: from_dict(values[name]) for name in _CONFIGS}})


_CONFIGS = ("data", "autoencoder_config", "conditioning")
_PATHS = {"autoencoder_config": "first_stage.autoencoder"}
"""Fields of a recipe that an experiment has elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What is known of one shard."""

    records: int
    size: int
    """Bytes of the file."""
    checksum: int
    """CRC-32 of the file."""
    sums: LatentSums

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Shard":
        """The shard of which `asdict` made `values` and JSON made lists of its tuples."""
        sums = values["sums"]
        sums = LatentSums(count=sums["count"], first=tuple(sums["first"]), second=tuple(sums["second"]))
        return cls(**{**values, "sums": sums})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A complete set of latents."""

    recipe: Recipe
    layout: Layout
    shards: tuple[Shard, ...]

    @property
    def sums(self) -> LatentSums:
        """What the statistics of the whole set are made of."""
        return reduce(add, (shard.sums for shard in self.shards))

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def data_of(config: DataConfig) -> DataConfig:
    """What of a data configuration latents depend on: where they are kept and how they are read is left out."""
    return replace(config, cache_latents=True, latents=None, cache_dir=None, num_threads=0)


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs, as lines `name: old -> new`; not where the pictures lie, for they have a fingerprint."""
    names = {field.name: _PATHS.get(field.name, field.name) for field in fields(Recipe)}
    return [line for name, path in names.items() for line in differences(getattr(old, name), getattr(new, name), path)]


def write_unfinished(folder: Path, recipe: Recipe) -> None:
    """Say what a set is going to hold that has no manifest yet."""
    write_sealed(folder / UNFINISHED, {"version": VERSION, "recipe": recipe.as_json()})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all: the set is complete with it."""
    values = {
        "version": VERSION,
        "statistics": manifest.sums.as_json(),
        "recipe": manifest.recipe.as_json(),
        "layout": asdict(manifest.layout),
        "shards": [asdict(shard) for shard in manifest.shards],
    }
    write_sealed(folder / MANIFEST, values)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a set, whose shards are not looked at.

    Raises:
        FileNotFoundError: there is none.
        DamagedLatents: it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    try:
        values = _read(path)
        arrays = {
            name: ArrayField(dtype=field["dtype"], shape=tuple(field["shape"]))
            for name, field in values["layout"]["arrays"].items()
        }
        return Manifest(
            recipe=Recipe.from_json(values["recipe"]),
            layout=Layout(arrays=arrays, is_point=values["layout"]["is_point"]),
            shards=tuple(map(Shard.from_json, values["shards"])),
        )
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise DamagedLatents(
            f"the manifest {path} cannot be used: {error}; remove {folder} and encode again"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    values = read_sealed(path)
    if values.get("version") != VERSION:
        raise ValueError(f"it is of version {values.get('version')!r}, and this program reads version {VERSION}")
    return values


def found_recipe(folder: Path) -> Recipe | None:
    """The recipe of a set, finished or not; None if there is no set.

    Raises:
        DamagedLatents: it cannot be read.
    """
    try:
        return read_manifest(folder).recipe
    except FileNotFoundError:
        pass
    path = folder / UNFINISHED
    try:
        return Recipe.from_json(_read(path)["recipe"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedLatents(f"{path} cannot be used ({error}); remove {folder} and encode again") from error


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"{shard:05d}.array_record"


def seal_path(folder: Path, shard: int) -> Path:
    """The seal of a shard while the set is unfinished."""
    return shard_path(folder, shard).with_suffix(".json")


def read_shard_seal(folder: Path, shard: int) -> Shard | None:
    """The seal of a shard of an unfinished set; None if the shard has none, or not the size that the seal says."""
    try:
        seal = Shard.from_json(read_sealed(seal_path(folder, shard)))
        return seal if shard_path(folder, shard).stat().st_size == seal.size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def num_sealed(folder: Path, recipe: Recipe) -> int:
    """Shards of an unfinished set that are whole."""
    return sum(read_shard_seal(folder, shard) is not None for shard in range(recipe.num_shards))


def faults(
    folder: Path, manifest: Manifest, *, contents: bool, advance: Callable[[], None] = lambda: None
) -> Iterator[tuple[Path, str]]:
    """Files that are missing, changed or too many, with what is wrong; without `contents` by names and sizes alone.

    `advance` is called for every shard that has been looked at, which may take long.
    """
    known = [shard_path(folder, index) for index in range(len(manifest.shards))]
    for path, shard in zip(known, manifest.shards, strict=True):
        if fault := _fault(path, shard, contents=contents):
            yield path, f"{fault}; {_MEND}"
        advance()
    for path in sorted(set(folder.glob("*.array_record")) - set(known)):
        yield path, "does not belong to this set; move it away"


def _fault(path: Path, shard: Shard, *, contents: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != shard.size:
            return f"has {size} bytes where {shard.size} were written"
        if contents and file_checksum(path) != [shard.size, shard.checksum]:
            return "has changed since it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
