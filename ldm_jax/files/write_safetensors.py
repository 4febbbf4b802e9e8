"""Writing safetensors: one tensor in memory at a time, and a file that is complete or not there.

The format is in `safetensors_header`, the names of shards and index are those of diffusers and transformers.
"""

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
from jaxtyping import Shaped, UInt8

from ldm_jax.errors import UserError
from ldm_jax.files.safetensors_header import DTYPES

FloatType: TypeAlias = Literal["float32", "float16", "bfloat16"]

FORMAT = {"format": "pt"}
"""Metadata without which transformers refuses a file."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor that is made when it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Shaped[np.ndarray, "..."]]


Source: TypeAlias = Mapping[str, "np.ndarray | LazyTensor"]


def write_safetensors(
    path: Path,
    tensors: Source,
    *,
    dtype: FloatType | None = None,
    metadata: Mapping[str, str] = FORMAT,
    overwrite: bool = False,
) -> None:
    """Write one safetensors file.

    Args:
        path: the file; its folder is made.
        tensors: by name, in any order; they are written larger types first, so that each is aligned.
        dtype: what floating-point tensors are rounded to, to nearest even; None and others leave them as they are.
        metadata: strings for the header.
        overwrite: whether a file that is there is replaced.

    Raises:
        UserError: the file is there, cannot be written, or a tensor is too large for `dtype`, of a type that the
            format lacks, or not of the shape that was announced.
    """
    if path.exists() and not overwrite:
        raise _already_there(path)
    _write_all({path: _content(tensors, _plan(tensors, dtype), metadata)})


def save_weights(
    folder: Path,
    stem: str,
    tensors: Source,
    *,
    dtype: FloatType | None = None,
    variant: str | None = None,
    max_shard_bytes: int = 10 * 10**9,
    overwrite: bool = False,
) -> Path:
    """Write the weights of a component as diffusers and transformers name them, and return the file or the index.

    What fits into `max_shard_bytes` becomes `STEM.safetensors`, more becomes `STEM-00001-of-0000N.safetensors` with
    the index `STEM.safetensors.index.json`, written last. A variant stands as `.VARIANT` behind the stem of files and
    before the `.json` of the index. When overwriting, files of an earlier, differently divided save are removed.

    Raises:
        UserError: there are such weights already, or as `write_safetensors`.
    """
    base = stem if variant is None else f"{stem}.{variant}"
    index = folder / f"{stem}.safetensors.index{'' if variant is None else f'.{variant}'}.json"
    before = _weights_before(folder, base, index)
    if before and not overwrite:
        raise _already_there(before[0])
    plan = _plan(tensors, dtype)
    shards = _divide(plan, max_shard_bytes)
    names = [f"{base}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = dict(zip(names if len(shards) > 1 else [f"{base}.safetensors"], shards, strict=True))
    contents = {
        folder / file: _content(tensors, {name: plan[name] for name in part}, FORMAT) for file, part in files.items()
    }
    if len(files) > 1:
        contents[index] = _index_content(files, plan)
    # the old index goes first: it must not join old shards and new ones
    _write_all(contents, stale=[index, *(path for path in before if path not in contents)])
    return next(reversed(contents))


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What is announced of a tensor in the header."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def _plan(tensors: Source, dtype: FloatType | None) -> dict[str, _Place]:
    """What is written, in its order."""
    if not tensors:
        raise UserError("there are no tensors to write")
    plan = {}
    for name, tensor in tensors.items():
        stored = tensor.dtype.newbyteorder("<")
        if dtype is not None and (stored.kind == "f" or stored == _FLOATS["bfloat16"]):
            stored = _FLOATS[dtype]
        if stored not in _NAMES or name == "__metadata__":
            raise UserError(f"safetensors cannot hold a tensor {name} of {tensor.dtype}; convert or rename it")
        plan[name] = _Place(dtype=stored, shape=tuple(tensor.shape))
    return dict(sorted(plan.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def _content(tensors: Source, plan: Mapping[str, _Place], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, tensor by tensor."""
    yield _header(plan, metadata)
    for name, place in plan.items():
        yield _bytes_of(name, tensors[name], place).data


def _header(plan: Mapping[str, _Place], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, place in plan.items():
        begin, end = end, end + place.size
        entries[name] = {"dtype": _NAMES[place.dtype], "shape": list(place.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    return len(text).to_bytes(8, "little") + text


def _bytes_of(name: str, tensor: np.ndarray | LazyTensor, place: _Place) -> UInt8[np.ndarray, "n"]:
    """The bytes of one tensor, rounded to the type in which it is stored."""
    value = np.asarray(tensor.read()) if isinstance(tensor, LazyTensor) else tensor
    if value.shape != place.shape or value.dtype != tensor.dtype:
        raise UserError(
            f"tensor {name} was announced as {tensor.dtype}{list(place.shape)} and came as "
            f"{value.dtype}{list(value.shape)}"
        )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(value.astype(place.dtype, copy=False))
    if stored.dtype != value.dtype and np.isfinite(stored).sum() < np.isfinite(value).sum():
        raise UserError(f"tensor {name} has values that {place.dtype} cannot hold; choose a wider type")
    return stored.reshape(-1).view(np.uint8)


def _divide(plan: Mapping[str, _Place], max_bytes: int) -> list[list[str]]:
    """Names of each shard; a tensor larger than a shard has one of its own."""
    shards: list[list[str]] = []
    room = 0
    for name, place in plan.items():
        if not shards or place.size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= place.size
    return shards


def _index_content(files: Mapping[str, list[str]], plan: Mapping[str, _Place]) -> Iterator[bytes | memoryview]:
    total = sum(place.size for place in plan.values())
    weight_map = {name: file for file, names in files.items() for name in names}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
    yield text.encode() + b"\n"


def _write_all(contents: Mapping[Path, Iterator[bytes | memoryview]], stale: Sequence[Path] = ()) -> None:
    """Write every file beside its place, then remove `stale` and put all in place: until then, all stays as it was."""
    temporary: dict[Path, Path] = {}
    path = next(iter(contents))
    try:
        for path, chunks in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            place = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
            with place.open("xb") as file:
                temporary[path] = place
                file.writelines(chunks)
        for path in stale:
            path.unlink(missing_ok=True)
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        for left in temporary.values():
            left.unlink(missing_ok=True)


def _weights_before(folder: Path, base: str, index: Path) -> list[Path]:
    """What an earlier save of the same weights left."""
    shard = re.compile(re.escape(base) + r"(-\d{5}-of-\d{5})?\.safetensors")
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if path == index or shard.fullmatch(path.name)]


def _already_there(path: Path) -> UserError:
    return UserError(f"{path} is already there; choose another place, or say that it may be overwritten")
