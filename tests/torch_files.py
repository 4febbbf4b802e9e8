"""PyTorch checkpoints made by hand: what `torch.save` would write, without PyTorch."""

import io
import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.files.torch_pickle import STORAGES

STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}
MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class FakeGlobal:
    """A name to be written into a pickle, whether or not it exists here."""

    module: str
    name: str

    def __call__(self) -> None:
        """Only so that `pickle` takes it for a function."""


@dataclass(frozen=True, eq=False)
class FakeStorage:
    key: str
    content: np.ndarray


@dataclass(frozen=True, eq=False)
class FakeTensor:
    """A view of a storage, or a Parameter that wraps it."""

    storage: FakeStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_parameter: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_parameter:
            plain = FakeTensor(self.storage, self.offset, self.shape, self.strides)
            return FakeGlobal("torch._utils", "_rebuild_parameter"), (plain, True, {})
        arguments = (self.storage, self.offset, self.shape, self.strides, False, {})
        return FakeGlobal("torch._utils", "_rebuild_tensor_v2"), arguments

    @property
    def value(self) -> np.ndarray:
        strides = [stride * self.storage.content.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(self.storage.content[self.offset :], self.shape, strides)


def tensor_of(array: np.ndarray, key: str = "0", **changes: Any) -> FakeTensor:
    """A tensor with a storage of its own."""
    strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).reshape(array.shape).strides)
    fields = {"offset": 0, "shape": array.shape, "strides": strides, **changes}
    return FakeTensor(FakeStorage(key, array.reshape(-1)), **fields)


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Python's pickler, which also writes names that do not exist, and notes the storages."""

    def __init__(self, *args: Any, legacy: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.legacy = legacy
        self.storages: dict[str, np.ndarray] = {}

    def save(self, obj: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(obj, FakeGlobal):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, *args, **kwargs)

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, FakeStorage):
            return None
        self.storages[obj.key] = obj.content
        kind = FakeGlobal("torch", STORAGE_NAMES[obj.content.dtype])
        identifier = ("storage", kind, obj.key, "cpu", obj.content.size)
        return (*identifier, None) if self.legacy else identifier


def pickled(content: Any, protocol: int = 2, legacy: bool = False) -> tuple[bytes, dict[str, np.ndarray]]:
    """The pickle of a checkpoint and its storages."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol, legacy=legacy)
    pickler.dump(content)
    return stream.getvalue(), pickler.storages


def write_entries(path: Path, entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def write_zip(path: Path, content: Any, protocol: int = 2, changes: Mapping[str, bytes | None] | None = None) -> Path:
    """A checkpoint as a zip archive; `changes` replaces entries, or with None leaves them out."""
    data, storages = pickled(content, protocol)
    entries = {"archive/data.pkl": data, "archive/byteorder": b"little", "archive/version": b"3\n"}
    entries |= {f"archive/data/{key}": storage.tobytes() for key, storage in storages.items()}
    entries |= changes or {}
    return write_entries(path, {name: entry for name, entry in entries.items() if entry is not None})


def write_legacy(path: Path, content: Any, **changes: Any) -> Path:
    """A checkpoint as PyTorch before 1.6 wrote it; `changes` replaces its parts."""
    data, storages = pickled(content, legacy=True)
    system = {"protocol_version": 1001, "little_endian": sys.byteorder == "little", "type_sizes": {}}
    parts = {"magic": MAGIC, "protocol": 1001, "system": system, "object": data, "keys": sorted(storages), **changes}
    encoded = [part if isinstance(part, bytes) else pickle.dumps(part, 2) for part in parts.values()]
    for key in sorted(storages):
        encoded += [storages[key].size.to_bytes(8, "little"), storages[key].tobytes()]
    path.write_bytes(b"".join(encoded))
    return path
