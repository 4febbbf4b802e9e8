"""What a pickle of numpy arrays in containers may name, and the arrays that come out of it; nothing of it is run."""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ldm_jax.files.plain_pickle import Name, Vocabulary, read_pickle
from ldm_jax.files.tensor_file import damaged, open_binary

_MAX_DEPTH = 20


@dataclass(eq=False)
class _NumpyType:
    dtype: np.dtype[Any]


@dataclass(eq=False)
class _NumpyArray:
    array: Shaped[np.ndarray, "..."] | None = None


def read_arrays(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of a pickled nested dict, by their keys joined with slashes.

    Raises:
        UserError: the file is missing or damaged, or its pickle asks for more than arrays and containers.
    """
    with open_binary(path) as file:
        content = read_pickle(path, BytesIO(file.read()), NUMPY)
    arrays: dict[str, np.ndarray] = {}
    _collect(path, content, (), arrays)
    return arrays


def _collect(path: Path, value: Any, keys: tuple[str, ...], arrays: dict[str, np.ndarray]) -> None:
    if isinstance(value, dict) and len(keys) < _MAX_DEPTH:
        for key, inner in value.items():
            _collect(path, inner, (*keys, str(key)), arrays)
    elif isinstance(value, _NumpyArray) and value.array is not None:
        arrays["/".join(keys)] = value.array
    else:
        raise damaged(path, f"{'/'.join(keys) or 'its content'} is a {type(value).__name__} and no array")


def _bytes_of(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Bytes, which old protocols write as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes are written in an unknown way")
    return text.encode("latin1")


def _numpy_type(code: Any, *_: Any) -> _NumpyType:
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)", code):
        raise ValueError(
            f"{code!r:.40} is no numpy dtype of numbers" if isinstance(code, str) else "a dtype is no text"
        )
    return _NumpyType(np.dtype(code))


def _numpy_scalar(dtype: Any, raw: Any) -> np.generic:
    if not isinstance(dtype, _NumpyType) or not isinstance(raw, bytes) or len(raw) != dtype.dtype.itemsize:
        raise ValueError("a numpy scalar is incomplete")
    return np.frombuffer(raw, dtype.dtype)[0]


def _numpy_array(*_: Any) -> _NumpyArray:
    """An array that gets its content by `_build`; it is created empty."""
    return _NumpyArray()


def build_numpy(target: Any, state: Any) -> None:
    """Give a dtype its byte order, and an array its content.

    Raises:
        TypeError, ValueError: the state is none.
    """
    if isinstance(target, _NumpyType):
        if state[1] in ("<", ">"):
            target.dtype = target.dtype.newbyteorder(state[1])
    elif isinstance(target, _NumpyArray):
        _, shape, dtype, is_fortran, raw = state
        if not isinstance(dtype, _NumpyType) or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            raise ValueError("a numpy array is incomplete")
        target.array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")
    else:
        raise TypeError(f"a {type(target).__name__} has no state")


def _in_numpy(*names: str) -> list[Name]:
    """Names in numpy's module of arrays, which numpy 2 calls otherwise."""
    return [(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in names]


def in_builtins(name: str) -> list[Name]:
    """A name in the module of what is built in, which Python 2 calls otherwise."""
    return [("builtins", name), ("__builtin__", name)]


NUMPY = Vocabulary(
    calls={
        ("_codecs", "encode"): _bytes_of,
        ("numpy", "dtype"): _numpy_type,
        **dict.fromkeys(in_builtins("bytes"), _bytes_of),
        **dict.fromkeys(_in_numpy("scalar"), _numpy_scalar),
        **dict.fromkeys(_in_numpy("_reconstruct"), _numpy_array),
    },
    constants=frozenset({("numpy", "ndarray")}),
    build=build_numpy,
)
"""The names that a pickle of arrays may use."""
