"""Tensors of other systems in the tests: a source in memory, and all that a format says of a module."""

from collections.abc import Iterable

import numpy as np
from flax.traverse_util import flatten_dict

from ldm_jax.interop.mapping import SlotOf


class Tensors(dict[str, np.ndarray]):
    """Arrays by name, as a file of tensors."""

    def names(self) -> Iterable[str]:
        """Every name."""
        return list(self)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self[name].shape

    def read(self, name: str) -> np.ndarray:
        """Values of a tensor."""
        return self[name]


def foreign_shapes(slot_of: SlotOf, abstract: dict) -> dict[str, tuple[int, ...]]:
    """Shape of every foreign tensor of a module; each of its parts is claimed by one parameter."""
    claims: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    layouts = {}
    for path, leaf in flatten_dict(abstract, sep="/").items():
        name, layout, part = slot_of(path)
        claims.setdefault(name, []).append((part, leaf.shape))
        layouts[name] = layout
    shapes = {}
    for name, parts in claims.items():
        assert sorted(part for part, _ in parts) == list(range(len(parts))), f"{name} is claimed twice"
        zeros = (np.broadcast_to(np.float32(0), shape) for _, shape in sorted(parts))
        shapes[name] = layouts[name].write(*zeros).shape
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]], dtype: str = "float32") -> Tensors:
    """Random values of these shapes."""
    numbers = np.random.default_rng(0)
    return Tensors({name: numbers.normal(size=shape).astype(dtype) for name, shape in shapes.items()})
