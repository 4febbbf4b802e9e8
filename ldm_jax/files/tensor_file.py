"""An open file of tensors, of which each is read from the disk when it is asked for.

Every format comes down to the same: a table that says where in the file which tensor lies. `safetensors_header` and
`torch_checkpoint` make such tables, `weight_files` joins the tables of several shards.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from ldm_jax.errors import UserError


@runtime_checkable
class Tensors(Protocol):
    """Tensors by name, read one at a time; close it, or use it as a context manager."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says beside its tensors: strings of a safetensors header, scalars such as `global_step`."""
        ...

    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of the file."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        ...

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type in which a tensor is stored, without reading it."""
        ...

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """The tensor as it is stored; the array belongs to the caller."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...

    def __enter__(self) -> "Tensors": ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Distance of neighbours along each axis, in elements; never negative."""
    start: int
    """Byte of the file where the first element begins."""

    @property
    def span(self) -> int:
        """Bytes from the beginning of the first element to the end of the last one."""
        return view_extent(self.shape, self.strides) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """One open file; see `Tensors`. Threads that read at the same time need one each."""

    path: Path
    file: BufferedReader
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of the file."""
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._find(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type in which a tensor is stored, without reading it."""
        return self._find(name).dtype

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """The tensor as it is stored, float16 and bfloat16 included.

        No more is read than lies between its first and its last element. A transposed tensor comes as a transposed
        view of that, and elements that were stored once for many places share their memory.

        Raises:
            UserError: there is no such tensor, or the file has become shorter or unreadable since it was opened.
        """
        tensor = self._find(name)
        raw = np.empty(tensor.span, np.uint8)
        try:
            self.file.seek(tensor.start)
            count = self.file.readinto(raw.data)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if count != tensor.span:
            raise damaged(self.path, f"tensor {name} takes {tensor.span} bytes, of which {count} are left")
        strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
        return np.ndarray(tensor.shape, tensor.dtype, raw.data, 0, strides)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise no_such_tensor(self.path, name, len(self.tensors))
        return self.tensors[name]


def packed_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of an array without gaps whose last axis is the fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def view_extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements of storage from the first to the last one of a view; 0 if the view is empty."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def open_binary(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        UserError: it does not exist, may not be read, or is a folder.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def damaged(path: Path, problem: str) -> UserError:
    """The error for a file whose content contradicts itself."""
    return UserError(f"{path} is damaged: {problem}; download or copy it again")


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that the system does not give."""
    return UserError(f"cannot read {path} ({error.strerror or error}); check that it is there and may be read")


def no_such_tensor(path: Path, name: str, count: int) -> UserError:
    """The error for a tensor that is asked for in vain."""
    return UserError(f"{path} holds no tensor {name} among its {count}; names() lists what there is")
