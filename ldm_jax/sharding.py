"""The device mesh and the rule that places parameters and batches on it: the only file that names mesh axes.

Axes: `data` (other samples, same parameters), `fsdp` (other samples, a share of each large parameter), `tensor` (a
share of the work inside a layer). A parameter is placed by two rules:

(1) a short table of layer names splits matched projections over `tensor`: outputs of the first, inputs of the second;
(2) the largest other dimension that `fsdp` divides is split over it, if the parameter has MIN_FSDP_SIZE values or more.

The `constants` of a state are whole on every device: nothing lies beside them, and gathering them in each step would
cost more than they take. Optimizer moments and moving averages have their parameter's path as the tail of their own:
the same rules place them.

A step makes whole what it trains of what `fsdp` splits before it computes with it (`make_gather`), so that the
partitioner has no choice but to split activations by samples. Left to itself, as with frozen parameters, it also splits
them by channels, and gathers those.

Where the devices lie in several slices (TPU slices, or GPU hosts, joined by a slower network), one axis crosses them,
the one that `MeshConfig.across_slices` names, and the others stay inside.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ldm_jax.config import MeshConfig, nearest_divisor
from ldm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
MIN_FSDP_SIZE = 2**12

_SPLIT_OUTPUT = frozenset({"query", "key", "value", "dense_0", "conv_0"})
_SPLIT_INPUT = frozenset({"out", "dense_1", "conv_1"})


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices of all processes (or of `devices`) with the axes `data`, `fsdp`, `tensor`.

    Raises:
        UserError: the axis sizes do not multiply to the number of devices, or the axis that crosses the slices is not a
            multiple of their number.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    given = math.prod(size for size in sizes.values() if size != -1)
    rest = [name for name, size in sizes.items() if size == -1]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if len(devices) % given or (not rest and given != len(devices)):
        flags = " ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
        inside = nearest_divisor(
            len(devices) // slices, max(1, given if config.across_slices == "data" else given // slices)
        )
        usable = inside if config.across_slices == "data" else slices * inside
        raise UserError(
            f"{flags} needs {'a multiple of ' if rest else ''}{given} devices, but there are {len(devices)}; sizes "
            f"that work: --mesh.data -1 --mesh.fsdp {usable} --mesh.tensor 1"
        )
    shape = {name: len(devices) // given if size == -1 else size for name, size in sizes.items()}
    types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        # An axis may take a part of a side of the torus: 8 x 8 on a slice of 4x4x4 could not be had otherwise.
        arranged = mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
        return Mesh(arranged, AXES, axis_types=types)
    return Mesh(_across_slices(shape, config.across_slices, slices, devices), AXES, axis_types=types)


def own_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process alone, each for other samples; `mesh` itself where there is no other process."""
    if jax.process_count() == 1:
        return mesh
    return make_mesh(MeshConfig(), mesh.local_devices)


def _across_slices(shape: dict[str, int], axis: str, slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Devices as an array in which neighbours along `axis`, and only along it, may lie in other slices."""
    if shape[axis] % slices:
        inside = len(devices) // slices
        other = "fsdp" if axis == "data" else "data"
        raise UserError(
            f"--mesh.{axis} {shape[axis]} crosses {slices} slices of {inside} devices and is not a multiple of "
            f"{slices}; sizes that work: --mesh.{axis} {slices} --mesh.{other} {inside} --mesh.tensor 1"
        )
    outer = {name: slices if name == axis else 1 for name in shape}
    inner = {name: size // outer[name] for name, size in shape.items()}
    shapes = tuple(inner.values()), tuple(outer.values())
    return mesh_utils.create_hybrid_device_mesh(*shapes, devices, allow_split_physical_axes=True)


def check_tensor_axis(mesh: Mesh, params: Any) -> None:
    """Refuse a tensor axis that splits none of the (possibly abstract) parameters, and would only repeat work.

    Raises:
        UserError: with the sizes of the axis that work on as many devices.
    """
    tensor = mesh.shape["tensor"]
    leaves = [(path_names(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    dims = {shape[dim] for path, shape in leaves if (dim := _tensor_dim(path, shape)) is not None}
    if tensor == 1 or any(size % tensor == 0 for size in dims):
        return
    usable = [n for n in range(1, mesh.size + 1) if mesh.size % n == 0 and (n == 1 or any(d % n == 0 for d in dims))]
    raise UserError(
        f"--mesh.tensor {tensor} splits no layer of this model (their sizes: {', '.join(map(str, sorted(dims)))}); "
        f"sizes that work on {mesh.size} devices: {', '.join(map(str, usable))}"
    )


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
        names = path_names(path)
        return NamedSharding(mesh, P() if names[:1] == ("constants",) else parameter_spec(names, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def make_gather(mesh: Mesh, compute_dtype: DTypeLike) -> Callable[[Any], Any]:
    """What turns the shares of trained parameters into whole ones (along `fsdp`), as layers take them.

    Kernels are cast first, to the type in which layers multiply by them anyway: half the bytes move in bfloat16.
    Gradients go back in shares: one reduce-scatter where the whole would be an all-reduce.
    """

    def gather(params: Any) -> Any:
        def whole(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            names = path_names(path)
            share = parameter_spec(names, leaf.shape, mesh)
            if "fsdp" not in share:
                return leaf
            rest = P(*(None if axis == "fsdp" else axis for axis in share))
            leaf = leaf.astype(compute_dtype) if names[-1] == "kernel" else leaf
            return _gather(leaf, NamedSharding(mesh, share), NamedSharding(mesh, rest))

        return jax.tree_util.tree_map_with_path(whole, params)

    return gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf: jax.Array, share: NamedSharding, whole: NamedSharding) -> jax.Array:
    """`leaf` from one placement into another; its gradient back into the first."""
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(leaf, share), whole)


def _gather_forward(leaf: jax.Array, share: NamedSharding, whole: NamedSharding) -> tuple[jax.Array, None]:
    return _gather(leaf, share, whole), None


def _gather_backward(share: NamedSharding, whole: NamedSharding, kept: None, gradient: jax.Array) -> tuple[jax.Array]:
    del whole, kept
    return (jax.lax.with_sharding_constraint(gradient, share),)


_gather.defvjp(_gather_forward, _gather_backward)


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


@functools.lru_cache
def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """Which rows of a global batch the devices of this process hold, in order: what it has to read."""
    ranges = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for index in ranges if index is not None for row in range(batch_size)[index[0]]}))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a global batch (those of `local_rows`) as global arrays."""
    sharding = batch_sharding(mesh)
    shards = num_batch_shards(mesh)
    own = len(local_rows(mesh, shards))

    def put(rows: np.ndarray) -> jax.Array:
        size = len(rows) // own * shards
        held = np.asarray(local_rows(mesh, size))

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return rows[np.searchsorted(held, start) : np.searchsorted(held, stop)]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, part)

    return {name: put(rows) for name, rows in batch.items()}


def place(mesh: Mesh, tree: Any) -> Any:
    """Parameters that every process has, from wherever they are to where the rules put them: each device its share."""

    return jax.tree.map(_put, tree, state_shardings(mesh, tree))


def place_whole(mesh: Mesh, tree: Any) -> Any:
    """Values that every process has, all of them on each device."""
    return jax.tree.map(lambda leaf: _put(leaf, replicated(mesh)), tree)


def place_batch(mesh: Mesh, tree: Any) -> Any:
    """Rows that every process has all of, split over the devices that hold different samples."""
    return jax.tree.map(lambda leaf: _put(leaf, batch_sharding(mesh)), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def to_host(array: Any) -> np.ndarray:
    """A whole array in the memory of every process; all of them have to call it."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def are_close(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    """Whether two trees have the same structure and shapes, and numbers that differ by no more; all processes ask."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = [(to_host(a), to_host(b)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
    return all(a.shape == b.shape and np.allclose(a, b, rtol=0.0, atol=tolerance) for a, b in pairs)


def within_reach(tree: Any) -> Any:
    """The arrays as this process can use them by itself: those that lie in shares on all processes come to the host."""
    return jax.tree.map(lambda leaf: leaf if getattr(leaf, "is_fully_addressable", True) else to_host(leaf), tree)


def to_all(value: np.ndarray) -> np.ndarray:
    """One value of each process, stacked, in the memory of every process; all of them have to call it."""
    if jax.process_count() == 1:
        return value[None]
    return np.asarray(multihost_utils.process_allgather(value))
