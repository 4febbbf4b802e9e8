"""The device mesh and the rule that places parameters and batches on it: the only file that names mesh axes.

Axes: `data` (other samples, same parameters), `fsdp` (other samples, a share of each large parameter), `tensor` (a
share of the work inside a layer). A parameter is placed by two rules:

(1) a short table of layer names splits matched projections over `tensor`: outputs of the first, inputs of the second;
(2) the largest other dimension that `fsdp` divides is split over it, if the parameter has MIN_FSDP_SIZE values or more.

Optimizer moments and moving averages have their parameter's path as the tail of their own: the same rules place them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.config import MeshConfig, nearest_divisor
from ldm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
MIN_FSDP_SIZE = 2**12

_SPLIT_OUTPUT = frozenset({"query", "key", "value", "dense_0", "conv_0"})
_SPLIT_INPUT = frozenset({"out", "dense_1", "conv_1"})


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices (or of `devices`) with the axes `data`, `fsdp`, `tensor`.

    Raises:
        UserError: the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    given = math.prod(size for size in sizes.values() if size != -1)
    rest = [name for name, size in sizes.items() if size == -1]
    if len(devices) % given or (not rest and given != len(devices)):
        flags = " ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
        usable = nearest_divisor(len(devices), given)
        raise UserError(
            f"{flags} needs {'a multiple of ' if rest else ''}{given} devices, but there are {len(devices)}; sizes "
            f"that work: --mesh.data -1 --mesh.fsdp {usable} --mesh.tensor 1"
        )
    shape = tuple(len(devices) // given if size == -1 else size for size in sizes.values())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def parameter_spec(path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> P:
    """How a parameter at `path` is split: the tensor table (1), then the FSDP rule (2)."""
    spec: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    dim = _tensor_dim(path, shape)
    if tensor > 1 and dim is not None and shape[dim] % tensor == 0:
        spec[dim] = "tensor"
    if fsdp > 1 and math.prod(shape) >= MIN_FSDP_SIZE:
        candidates = [d for d, size in enumerate(shape) if spec[d] is None and size % fsdp == 0]
        if candidates:
            spec[max(candidates, key=lambda d: shape[d])] = "fsdp"
    return P(*spec)


def _tensor_dim(path: tuple[str, ...], shape: tuple[int, ...]) -> int | None:
    layer, leaf = (path[-2], path[-1]) if len(path) >= 2 else ("", "")
    if layer in _SPLIT_OUTPUT and leaf in ("kernel", "bias") and len(shape) >= 1:
        return len(shape) - 1
    if layer in _SPLIT_INPUT and leaf == "kernel" and len(shape) >= 2:
        return len(shape) - 2
    return None


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a pytree path as strings."""
    return tuple(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for every leaf of a (possibly abstract) state or parameter tree."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(path_names(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Samples split over all devices that hold different samples."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def split_over_batch_and_heads(attend: Callable[..., jax.Array], mesh: Mesh | None, *arrays: jax.Array) -> jax.Array:
    """`attend(*arrays)` on arrays [b, l, n, d], on each device for its own samples and heads.

    The compiler cannot split a hand-written kernel by itself. A dimension that the axes do not divide (the batch of one
    with which parameters are created) is not split: the devices do the same work.
    """
    if mesh is None or mesh.size == 1:
        return attend(*arrays)
    batch, heads = arrays[0].shape[0], arrays[0].shape[2]
    samples = ("data", "fsdp") if batch % num_batch_shards(mesh) == 0 else None
    spec = P(samples, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None, None)
    # The kernels do not say over which axes their results vary, so that is not checked.
    return jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)


def num_batch_shards(mesh: Mesh) -> int:
    """Number of different parts in which a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_size(name: str, batch_size: int, gradient_accumulation: int, mesh: Mesh) -> None:
    """Refuse a batch that cannot be split evenly.

    Raises:
        UserError: with the nearest batch sizes that work.
    """
    shards = num_batch_shards(mesh) * gradient_accumulation
    if batch_size % shards:
        below = max(batch_size // shards, 1) * shards
        raise UserError(
            f"{name}.batch_size={batch_size} cannot be split over {num_batch_shards(mesh)} devices and "
            f"{gradient_accumulation} micro-batches; nearest that can: {below} and {below + shards}"
        )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a global batch as global arrays."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
