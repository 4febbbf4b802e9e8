"""What a checkpoint holds, read without its model and without its devices: names, shapes, and one digest of it all.

(1) digest = SHA-256("step s, examples n;" then, for each array in the order of its path, "path shape dtype;" and its
    values, row by row, little-endian): the same for the same numbers on whatever mesh, and in whatever files
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ldm_jax import sharding
from ldm_jax.files.places import Place
from ldm_jax.training.seals import DamagedCheckpoint

_AT_ONCE = 64 * 2**20
"""Bytes of arrays that are read together: small ones by the dozen, a larger one alone."""


@dataclass(frozen=True)
class ArrayInfo:
    """An array of a checkpoint."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_contents(folder: Place) -> list[ArrayInfo]:
    """The arrays of a checkpoint in the order of their paths; none of them is read.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    return [info for info, _ in _leaves(read_tree(folder))]


def digest_checkpoint(folder: Place, step: int, examples: int) -> str:
    """The digest (1) of a checkpoint, of which a few arrays at a time are in memory.

    Args:
        folder: of the checkpoint, which is not verified here.
        step: optimizer steps done.
        examples: the position in the data: examples that these steps have taken.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    return _digest(step, examples, _read(folder, read_tree(folder)))


def digest_items(items: dict[str, Any], step: int, examples: int) -> str:
    """The digest (1) of trees of arrays, as `Checkpoints.save` takes them."""
    return _digest(step, examples, ((info, np.asarray(array)) for info, array in _leaves(items)))


def _digest(step: int, examples: int, arrays: Iterable[tuple[ArrayInfo, np.ndarray]]) -> str:
    digest = hashlib.sha256(f"step {step}, examples {examples};".encode())
    for info, array in arrays:
        digest.update(f"{'/'.join(info.path)} {info.shape} {info.dtype.name};".encode())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_tree(folder: Place) -> dict[str, Any]:
    """What describes each array of a checkpoint, in the tree that it was saved as, with branches that hold nothing.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    try:
        if not (tree := ocp.checkpointables_metadata(str(folder)).metadata):
            raise FileNotFoundError("it holds no arrays")
        return tree
    except Exception as error:  # Orbax raises a different class for each fault
        raise DamagedCheckpoint(f"checkpoint {folder} cannot be read: {error.__cause__ or error}") from error


def _leaves(tree: Any) -> list[tuple[ArrayInfo, Any]]:
    """Arrays (or what describes them) in the order of their paths."""
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.append((ArrayInfo(sharding.path_names(keys), tuple(leaf.shape), np.dtype(leaf.dtype)), leaf))
    return sorted(found, key=lambda pair: pair[0].path)


def _read(folder: Place, metadata: dict[str, Any]) -> Iterator[tuple[ArrayInfo, np.ndarray]]:
    for group in _groups([info for info, _ in _leaves(metadata)]):
        wanted = {info.path for info in group}
        part = jax.tree_util.tree_map_with_path(
            lambda keys, leaf, wanted=wanted: _host(leaf) if sharding.path_names(keys) in wanted else ocp.PLACEHOLDER,
            metadata,
        )
        try:
            items = ocp.load_checkpointables(str(folder), part)
        except Exception as error:  # as above
            raise DamagedCheckpoint(f"checkpoint {folder} cannot be read: {error.__cause__ or error}") from error
        values = {sharding.path_names(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(items)}
        yield from ((info, np.asarray(values[info.path])) for info in group)


def _host(leaf: Any) -> np.ndarray:
    """Stands for an array that is wanted on the host: it has a shape and a dtype, and takes no memory."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _groups(infos: list[ArrayInfo]) -> Iterator[list[ArrayInfo]]:
    group: list[ArrayInfo] = []
    for info in infos:
        if group and sum(other.nbytes for other in group) + info.nbytes > _AT_ONCE:
            yield group
            group = []
        group.append(info)
    if group:
        yield group
