"""Foreign weights in tests: tensors in memory as a file, random ones of a format, and comparison with PyTorch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ldm_jax.interop.mapping import SlotOf, write_tensors


class Tensors(dict[str, np.ndarray]):
    """Tensors by name, read as a file is."""

    def names(self) -> Iterable[str]:
        return self.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def read(self, name: str) -> np.ndarray:
        return self[name]


def random_tensors(abstract: Any, slot_of: SlotOf, seed: int = 0) -> Tensors:
    """Random foreign tensors for a module, none at its initial value."""
    numbers = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = numbers.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) or 1)
        return (values if len(leaf.shape) > 1 else 1 + 0.3 * values).astype(np.float32)

    return Tensors(write_tensors(jax.tree.map(draw, abstract), slot_of))


def assert_same_tensors(written: Iterator[tuple[str, np.ndarray]], expected: Mapping[str, np.ndarray]) -> None:
    """The same names, shapes and values."""
    tensors = dict(written)
    assert sorted(tensors) == sorted(expected)
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def assert_close(ours: Any, reference: Any) -> None:
    """The tolerance for one forward pass."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * max(1.0, np.abs(reference).max()))


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


def random_tensors_of(shapes: dict[str, tuple[int, ...]], dtype: str = "float32") -> Tensors:
    """Random values of these shapes."""
    numbers = np.random.default_rng(0)
    return Tensors({name: numbers.normal(size=shape).astype(dtype) for name, shape in shapes.items()})
