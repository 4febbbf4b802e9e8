"""The header of a safetensors file: where each tensor lies, believed only if it accounts for every byte.

The `safetensors` package reads neither bfloat16 nor float8 into numpy, and it maps the whole file into memory, where
each page that was touched counts.

(1) file = uint64 n, n bytes of JSON, data;  https://huggingface.co/docs/safetensors, "Format"
(2) JSON = {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}; offsets count from the
    beginning of the data, and the tensors cover the data without overlap or hole
"""

import json
import math
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.files.tensor_file import StoredTensor, TensorFile, damaged, packed_strides

DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(dtype) for name, dtype in (("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("C64", "<c8"))},
    **{f"I{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""Types of the format by its names for them."""

MAX_HEADER = 100_000_000
"""Longest header in bytes that the format allows."""

_MAX_AXES = 32


def read_safetensors(path: Path, file: BufferedReader) -> TensorFile:
    """The tensors of an open safetensors file.

    Raises:
        UserError: the header is not as (1) and (2) say, in which case the message names the first fault.
    """
    size = file.seek(0, 2)
    header, start = _read_header(path, file, size)
    metadata = _check_metadata(path, header.pop("__metadata__", {}))
    places = {name: _check_entry(path, name, entry) for name, entry in header.items()}
    _check_cover(path, {name: (begin, end) for name, (_, begin, end) in places.items()}, size - start)
    tensors = {}
    for name, ((dtype, shape), begin, _) in places.items():
        tensors[name] = StoredTensor(dtype=dtype, shape=shape, strides=packed_strides(shape), start=start + begin)
    return TensorFile(path=path, file=file, tensors=tensors, metadata=metadata)


def _read_header(path: Path, file: BufferedReader, size: int) -> tuple[dict[str, Any], int]:
    """The JSON of (1), and the byte where the data begins."""
    if size < 8:
        raise damaged(path, f"it has {size} bytes, and a safetensors file begins with 8 bytes of header length")
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise damaged(path, f"the header claims {length} bytes, and the format allows {MAX_HEADER}")
    if length > size - 8:
        raise damaged(path, f"the header claims {length} bytes, and {size - 8} follow")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"the header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged(path, "the header is no JSON object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return entries


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "__metadata__ is no table of strings")
    return metadata


def _check_entry(path: Path, name: str, entry: Any) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], int, int]:
    """Type, shape, begin and end of a tensor of (2)."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"the entry of tensor {name} has to hold dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > _MAX_AXES:
        raise damaged(path, f"tensor {name} has the shape {shape!r:.80}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise damaged(path, f"tensor {name} has the data_offsets {offsets!r:.80}")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise damaged(path, f"tensor {name} has the unknown dtype {entry['dtype']!r:.80}")
    needed, given = math.prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise damaged(path, f"tensor {name} needs {needed} bytes, and its data_offsets give {given}")
    return (dtype, tuple(shape)), offsets[0], offsets[1]


def _are_sizes(values: Any) -> bool:
    """Whether this is a list of whole numbers of 63 bits; JSON's true is none."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_cover(path: Path, places: dict[str, tuple[int, int]], size: int) -> None:
    """Raise unless the tensors, one after the other, fill `size` bytes."""
    covered, previous = 0, ""
    for name, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        if begin < covered:
            raise damaged(path, f"tensors {previous} and {name} overlap")
        if begin > covered:
            raise damaged(path, f"{begin - covered} bytes before tensor {name} belong to no tensor")
        covered, previous = end, name
    if covered > size:
        raise damaged(path, f"tensor {previous} ends {covered - size} bytes beyond the end of the file")
    if covered < size:
        raise damaged(path, f"{size - covered} bytes at the end belong to no tensor")
