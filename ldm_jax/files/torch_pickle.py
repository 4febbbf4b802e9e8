"""What the pickle inside a PyTorch checkpoint may name, and the records that come out of it instead of tensors.

Tensors become records that say which part of which storage they are; nothing is read. The list is closed: storages and
the functions that rebuild tensors, containers, numpy numbers and arrays, and a few classes of PyTorch Lightning, which
real checkpoints hold beside the weights and of which nothing is kept.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.files.numpy_pickle import NUMPY, build_numpy, in_builtins
from ldm_jax.files.plain_pickle import Global, Inert, Name, Vocabulary, pairs_of, plain_keys

STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype(bool),
}
"""Types of storages by PyTorch's names for them."""

_MAX_AXES = 32


@dataclass(frozen=True, eq=False)
class Storage:
    """A flat piece of a checkpoint that tensors are views of."""

    dtype: np.dtype[Any]
    key: str
    size: int
    """In elements."""


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def scalar_value(value: Any) -> int | float | str | bool | None:
    """A scalar of a pickle as Python has it; None for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float | str) else None


def storage_of(identifier: Any) -> Storage:
    """The storage of a persistent id ("storage", type, key, device, size), in old files with None behind it.

    Raises:
        ValueError: it is another persistent id.
    """
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise ValueError("a persistent id names no storage")
    _, kind, key, _, size, *view = identifier
    if not isinstance(kind, Global) or kind.name not in STORAGES or not isinstance(key, str) or not _is_size(size):
        raise ValueError("a persistent id names no storage")
    if view not in ([], [None]):
        raise ValueError("a storage is a view of another one, as PyTorch 0.1 wrote them")
    return Storage(STORAGES[kind.name], key, size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRecord:
    """The tensor that `torch._utils._rebuild_tensor_v2` would make; gradients and hooks are of no interest."""
    if not isinstance(storage, Storage) or not _is_size(offset):
        raise ValueError("a tensor lacks its storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        raise ValueError("shape and strides of a tensor do not fit")
    if len(shape) > _MAX_AXES or not all(_is_size(value) for value in (*shape, *strides)):
        raise ValueError("a tensor has an impossible shape or impossible strides")
    if len(rest) > 2 and rest[2]:
        raise ValueError("a tensor is conjugated or negated lazily")
    return TensorRecord(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise ValueError("a parameter is no tensor")
    return data


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    """An ordered dict; Python 2 wrote one as a list of lists of two."""
    if not isinstance(pairs, list | tuple):
        raise TypeError(f"a {type(pairs).__name__} makes no OrderedDict")
    return OrderedDict(pairs_of([part for pair in pairs for part in _pair(pair)]))


def _pair(pair: Any) -> Any:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TypeError("an OrderedDict takes pairs")
    return pair


def _counter(counts: Any = None) -> dict[Any, Any]:
    if not isinstance(counts, dict | None):
        raise TypeError(f"a {type(counts).__name__} makes no Counter")
    return counts or {}


def _items_into(container: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise TypeError(f"a {type(items).__name__} has no elements")
        return container(plain_keys(list(items)))

    return make


def _build(target: Any, state: Any) -> None:
    """Give an object its state: numpy's need it; an ordered dict (`_metadata`) and a tensor are whole without."""
    if not isinstance(target, OrderedDict | TensorRecord):
        build_numpy(target, state)


LIGHTNING: frozenset[Name] = frozenset(
    {
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
        ("pytorch_lightning.callbacks.lr_monitor", "LearningRateMonitor"),
        ("pytorch_lightning.utilities.parsing", "AttributeDict"),
        ("lightning_fabric.utilities.data", "AttributeDict"),
        ("lightning.fabric.utilities.data", "AttributeDict"),
    }
)
"""Classes of which PyTorch Lightning leaves traces in checkpoints: names may be keys, objects are dropped."""

TORCH = Vocabulary(
    calls={
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch", "Size"): _items_into(tuple),
        ("torch", "device"): lambda *parts: None,
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "Counter"): _counter,
        **NUMPY.calls,
        **dict.fromkeys(in_builtins("set"), _items_into(set)),
        **dict.fromkeys(in_builtins("frozenset"), _items_into(frozenset)),
    },
    constants=NUMPY.constants | {("torch", name) for name in STORAGES},
    inert=LIGHTNING,
    persistent=storage_of,
    build=_build,
)
"""The names that a checkpoint may use."""


def is_foreign(value: Any) -> bool:
    """Whether a value of a pickle stands for an object or a name that was left out."""
    return isinstance(value, Inert | Global)
