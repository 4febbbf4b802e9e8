"""PyTorch checkpoints (.ckpt, .pt, .pth, .bin): the table of their tensors, made without running their pickle.

(1) Since 1.6 a checkpoint is a zip archive with `NAME/data.pkl`, one entry `NAME/data/KEY` per storage, and
    `NAME/byteorder`.
(2) Before, it was pickles one after the other: a magic number, 1001, facts of the system, the object, the keys of the
    storages; and then, for each key in that order, its number of elements (int64) and its elements.
    Both: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

import dataclasses
import logging
from collections.abc import Mapping
from io import BufferedReader, BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from ldm_jax.errors import UserError
from ldm_jax.files.plain_pickle import Global, Vocabulary, read_pickle, refused
from ldm_jax.files.tensor_file import StoredTensor, TensorFile, damaged, view_extent
from ldm_jax.files.torch_pickle import TORCH, Storage, TensorRecord, is_foreign, scalar_value, storage_of
from ldm_jax.files.torch_zip import Entry, read_entries

logger = logging.getLogger(__name__)

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_NOTHING = Vocabulary()


def read_torch_zip(path: Path, file: BufferedReader) -> TensorFile:
    """The tensors of an open checkpoint of kind (1): those of its `state_dict` if it has one, else its own.

    Raises:
        UserError: it is damaged, big-endian, holds no tensors, or its pickle asks for more than tensors and containers.
    """
    entries = read_entries(path, file)
    pickles = [name for name in entries if name.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip archive, but none of torch.save: it has {len(pickles)} entries data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if (order := entries.get(f"{folder}byteorder")) and _bytes_of(file, order) != b"little":
        raise _big_endian(path)
    content = read_pickle(path, BytesIO(_bytes_of(file, entries[pickles[0]])), TORCH)
    prefix = f"{folder}data/"
    storages = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    return _make_file(path, file, content, storages)


def read_torch_legacy(path: Path, file: BufferedReader) -> TensorFile:
    """The tensors of an open checkpoint of kind (2); as `read_torch_zip`."""
    # whatever length a pickle claims, a mapped file reads no more than there is
    with mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        if mapped.read(1) != b"\x80" or _rewound(path, mapped) != _MAGIC:
            raise UserError(f"{path} is a pickle, but none of torch.save; get the weights as .safetensors")
        if read_pickle(path, mapped, _NOTHING) != _PROTOCOL:
            raise damaged(path, f"the protocol is not {_PROTOCOL}")
        system = read_pickle(path, mapped, _NOTHING)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise _big_endian(path)
        used: dict[str, Storage] = {}
        content = read_pickle(path, mapped, _remembering(used))
        keys = read_pickle(path, mapped, _NOTHING)
        storages = _lay_out(path, mapped, keys, used)
    return _make_file(path, file, content, storages)


def _bytes_of(file: BufferedReader, entry: Entry) -> bytes:
    file.seek(entry.start)
    return file.read(entry.size)


def _rewound(path: Path, mapped: mmap) -> Any:
    mapped.seek(0)
    return read_pickle(path, mapped, _NOTHING)


def _remembering(used: dict[str, Storage]) -> Vocabulary:
    """The usual vocabulary, which also notes the storages by key: only the pickle knows their types."""

    def persistent(identifier: Any) -> Storage:
        storage = storage_of(identifier)
        return used.setdefault(storage.key, storage)

    return dataclasses.replace(TORCH, persistent=persistent)


def _lay_out(path: Path, mapped: mmap, keys: Any, used: Mapping[str, Storage]) -> dict[str, Entry]:
    """Where each storage of (2) lies; the file stands at the first one."""
    entries = {}
    for key in keys if isinstance(keys, list) else [None]:
        if not isinstance(key, str) or key not in used or key in entries:
            raise damaged(path, "the keys of its storages are not those of its tensors")
        count = int.from_bytes(mapped.read(8), "little", signed=True)
        if count != used[key].size:
            raise damaged(path, f"the storage {key} has {count} elements, and its tensors expect {used[key].size}")
        entries[key] = Entry(start=mapped.tell(), size=count * used[key].dtype.itemsize)
        end = entries[key].start + entries[key].size
        if end > len(mapped):
            raise damaged(path, f"the storage {key} reaches beyond the end of the file")
        mapped.seek(end)
    return entries


def _make_file(path: Path, file: BufferedReader, content: Any, storages: Mapping[str, Entry]) -> TensorFile:
    """Choose the state dict, and locate its tensors."""
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of tensors; save model.state_dict()")
    inner = content.get("state_dict")
    state = inner if isinstance(inner, dict) else content
    if inner is not None and (foreign := [key for key, value in state.items() if is_foreign(value)]):
        raise refused(path, f"an object of {state[foreign[0]]!s} as {_shown(foreign[0])} of its state dict")
    tensors = {
        name: value for name, value in state.items() if isinstance(value, TensorRecord) and isinstance(name, str)
    }
    if not tensors:
        keys = ", ".join(_shown(key) for key in list(content)[:10])
        raise UserError(f"{path} holds no tensors at its top or in `state_dict`; its keys are: {keys}")
    scalars = {key: scalar_value(value) for key, value in content.items() if isinstance(key, str)}
    metadata = {key: value for key, value in scalars.items() if value is not None}
    if left_out := [_shown(key) for key in state if key not in tensors and key not in metadata]:
        logger.info("%s: left out what is no tensor: %s", path, ", ".join(left_out))
    located = {name: _locate(path, name, tensor, storages) for name, tensor in tensors.items()}
    return TensorFile(path=path, file=file, tensors=located, metadata=metadata)


def _shown(key: Any) -> str:
    """A key for a message; whole numbers of a pickle may be too long to print."""
    return str(key)[:100] if isinstance(key, str | Global) else f"(a {type(key).__name__})"


def _locate(path: Path, name: str, tensor: TensorRecord, storages: Mapping[str, Entry]) -> StoredTensor:
    storage = tensor.storage
    entry = storages.get(storage.key)
    if entry is None:
        raise damaged(path, f"the storage {storage.key} of tensor {name} is missing")
    if entry.size != storage.size * storage.dtype.itemsize:
        raise damaged(
            path,
            f"the storage {storage.key} of tensor {name} has {entry.size} bytes instead of "
            f"{storage.size * storage.dtype.itemsize}",
        )
    extent = view_extent(tensor.shape, tensor.strides)
    if extent and tensor.offset + extent > storage.size:
        raise damaged(
            path, f"tensor {name} ends at element {tensor.offset + extent} of a storage of {storage.size} elements"
        )
    start = entry.start + tensor.offset * storage.dtype.itemsize
    return StoredTensor(dtype=storage.dtype, shape=tensor.shape, strides=tensor.strides, start=start)


def _big_endian(path: Path) -> UserError:
    return UserError(f"{path} was written on a big-endian machine; load it there and save it as .safetensors")
