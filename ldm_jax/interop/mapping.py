"""How a module's parameters are called and laid out in another system, for reading and writing alike.

A format is a function from the path of a parameter (`down_0/block_1/resnet/conv_0/kernel`) to its slot: the name of the
foreign tensor, its layout, and which part of it the parameter is. As every parameter of the module has a slot, what is
missing in a file, unexpected or of another shape is known by name before anything is used.

Kernels here are `[*kernel, in, out]`, in PyTorch `[out, in, *kernel]`; dense kernels `[in, out]` and `[out, in]`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ldm_jax.errors import UserError
from ldm_jax.model import Params

_SHOWN = 20  # names in an error message


@runtime_checkable
class TensorSource(Protocol):
    """A file of named tensors, read one by one."""

    def names(self) -> Iterable[str]:
        """Every name."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Values of a tensor, in the type in which they are stored."""
        ...


@dataclass(frozen=True)
class Prefixed:
    """The tensors of a source whose names begin with a prefix, under the rest of their names."""

    source: TensorSource
    prefix: str

    def names(self) -> Iterable[str]:
        """Names without the prefix."""
        return [name.removeprefix(self.prefix) for name in self.source.names() if name.startswith(self.prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.source.shape(self.prefix + name)

    def read(self, name: str) -> np.ndarray:
        """Values of a tensor."""
        return self.source.read(self.prefix + name)


@dataclass(frozen=True)
class Layout:
    """How parameters lie in a foreign tensor: one tensor to its parts, and the parts to the tensor."""

    read: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    write: Callable[..., np.ndarray]


class Slot(NamedTuple):
    """Where a parameter is found: foreign name, layout, and its part of the tensor."""

    name: str
    layout: Layout
    part: int = 0


SlotOf = Callable[[str], Slot]
"""From the path of a parameter, joined by slashes, to its slot."""


def _kernel_from_torch(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (x.transpose(*range(2, x.ndim), 1, 0),)


def _kernel_to_torch(x: np.ndarray) -> np.ndarray:
    return x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))


PLAIN = Layout(read=lambda x: (x,), write=lambda x: x)
"""The same on both sides: biases, scales, embeddings."""

KERNEL = Layout(read=_kernel_from_torch, write=_kernel_to_torch)
"""A dense or convolution kernel: in and out first in PyTorch, last here."""


def dense_as_convolution(dims: int) -> Layout:
    """A dense kernel here that is a convolution over `dims` axes with one position there."""
    ones = (1,) * dims
    return Layout(
        read=lambda x: (x.reshape(x.shape[0], -1).T,) if x.shape[2:] == ones else (x,),
        write=lambda x: x.T.reshape(x.shape[1], x.shape[0], *ones),
    )


def torch_layout(path: str) -> tuple[str, Layout]:
    """The usual name of a leaf (`weight` or `bias`) and its layout, from our leaf's name."""
    leaf = path.rsplit("/", 1)[-1]
    match leaf:
        case "kernel":
            return "weight", KERNEL
        case "scale" | "embedding":
            return "weight", PLAIN
        case _:
            return leaf, PLAIN


def read_params(
    source: TensorSource,
    slot_of: SlotOf,
    abstract: Params,
    *,
    where: str,
    ignore: Callable[[str], bool] = lambda name: False,
) -> Params:
    """The parameters of a module, float32, from a file that must hold exactly them.

    Args:
        source: the file, with the prefix of the module taken off its names.
        slot_of: the format.
        abstract: the module's parameters as shapes.
        where: the file, for messages.
        ignore: foreign tensors that are no parameters (buffers such as `position_ids`).

    Raises:
        UserError: tensors are missing, unexpected or of another shape; every one is named.
    """
    leaves: dict[str, Any] = flatten_dict(abstract, sep="/")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    slots = {path: slot_of(path) for path in shapes}
    parts = _parts(slots)
    _require_fit(source, parts, slots, shapes, where, ignore)
    params: dict[str, np.ndarray] = {}
    for name, paths in parts.items():
        tensor = source.read(name)
        for path, values in zip(paths, slots[paths[0]].layout.read(tensor), strict=True):
            params[path] = np.ascontiguousarray(values, np.float32)
    return unflatten_dict(params, sep="/")


def write_tensors(params: Params, slot_of: SlotOf) -> Iterator[tuple[str, np.ndarray]]:
    """The foreign tensors of a module's parameters, one at a time: the inverse of `read_params`."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    slots = {path: slot_of(path) for path in flat}
    for name, paths in _parts(slots).items():
        values = (np.asarray(jax.device_get(flat[path])) for path in paths)
        yield name, np.ascontiguousarray(slots[paths[0]].layout.write(*values))


def _parts(slots: dict[str, Slot]) -> dict[str, list[str]]:
    """Paths of the parameters in each foreign tensor, in the order of its parts."""
    parts: dict[str, list[str]] = {}
    for path in sorted(slots, key=lambda path: slots[path].part):
        parts.setdefault(slots[path].name, []).append(path)
    return dict(sorted(parts.items()))


def _require_fit(
    source: TensorSource,
    parts: dict[str, list[str]],
    slots: dict[str, Slot],
    shapes: dict[str, tuple[int, ...]],
    where: str,
    ignore: Callable[[str], bool],
) -> None:
    present = set(source.names())
    faults = [f"missing: {name}" for name in parts if name not in present]
    faults += [f"unexpected: {name}" for name in sorted(present - set(parts)) if not ignore(name)]
    for name, paths in parts.items():
        if name not in present:
            continue
        # views of one zero: no memory for what is only asked for its shape
        wanted = slots[paths[0]].layout.write(*(np.broadcast_to(np.float32(0), shapes[path]) for path in paths)).shape
        if tuple(source.shape(name)) != wanted:
            faults.append(
                f"wrong shape: {name} is {list(source.shape(name))}, the configuration asks for {list(wanted)}"
            )
    if faults:
        listing = "\n  ".join(faults[:_SHOWN] + ([f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []))
        raise UserError(f"{where} does not hold the weights that its configuration describes:\n  {listing}")
