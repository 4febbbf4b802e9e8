"""Groups of accelerators by name: `v5p-64` or `v5p:4x4x4` for a TPU slice, `h100-64` for GPUs in nodes of eight.

The number counts chips (GPUs). Google Cloud counts cores in the names of v4 and v5p: its v5p-128 is v5p-64 here.

(1) slices of v5e and v6e: 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16
(2) slices of v4 and v5p: 2x2x1, 2x2x2, 2x2x4, 2x4x4, and AxBxC of multiples of four, A <= B <= C
    (cloud.google.com/tpu/docs: v4, v5e, v5p, v6e)
"""

import itertools
import math
import re
from dataclasses import dataclass

from ldm_jax.chips import CHIPS, Chip
from ldm_jax.errors import UserError

PLANNED = ("v4", "v5e", "v5p", "v6e", "a100", "h100", "h200")
"""The accelerators for which there is a compiler target."""

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_LARGEST = {"v4": (16, 4096), "v5p": (24, 6144)}
"""Longest side and number of chips of the largest slice that is offered."""
_MOST_GPUS = 4096


@dataclass(frozen=True)
class Topology:
    """A group of one kind of accelerator."""

    chip: Chip
    shape: tuple[int, ...]
    """Sides of a TPU slice; nodes and GPUs in each for GPUs."""

    @property
    def num_chips(self) -> int:
        """Chips, or GPUs."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As it is given on the command line, by number."""
        return f"{self.chip.name}-{self.num_chips}"

    @property
    def layout(self) -> str:
        """As compilers call the shape: `4x4x4`; for GPUs slices, nodes and GPUs of a node."""
        return "x".join(map(str, self.shape if self.chip.platform == "tpu" else (1, *self.shape)))

    @property
    def has_wrap_around(self) -> bool:
        """Whether each side of a slice is closed to a ring, so that rings use both directions of a link."""
        whole = 16 if len(self.shape) == 2 else 4
        return self.chip.platform == "tpu" and all(side % whole == 0 for side in self.shape)


def parse_topology(text: str) -> Topology:
    """The group that `text` names.

    Raises:
        UserError: there is no such accelerator or no such group; the message tells which there are.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)+))", text.strip().lower())
    if match is None:
        raise UserError(f"--topology {text} is not NAME-CHIPS, such as v5p-64 or h100-8, nor NAME:SHAPE as v5p:4x4x4")
    name, count, shape = match.groups()
    if name not in PLANNED:
        raise UserError(f"--topology {text}: unknown accelerator '{name}'; known: {', '.join(PLANNED)}")
    chip = next(chip for chip in CHIPS if chip.name == name)
    if shape is not None:
        return _of_shape(text, chip, tuple(map(int, shape.split("x"))))
    return of_size(chip, int(count))


def of_size(chip: Chip, count: int) -> Topology:
    """The most compact group of `count` chips.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    sizes = _slices(chip)
    if count not in sizes:
        near = sorted(sorted(sizes, key=lambda size: abs(math.log(size / max(count, 1))))[:4])
        unit = "GPUs" if chip.platform == "gpu" else "chips"
        raise UserError(
            f"there is no {chip.name} group of {count} {unit}; nearest: "
            f"{', '.join(f'{chip.name}-{size}' for size in near)}"
        )
    return Topology(chip, sizes[count])


def _of_shape(text: str, chip: Chip, shape: tuple[int, ...]) -> Topology:
    if chip.platform == "gpu":
        raise UserError(f"--topology {text}: GPUs come in nodes of eight, not in shapes; use {chip.name}-8")
    shapes = _shapes(chip)
    if shape not in shapes:
        same = [other for other in shapes if len(other) == len(shape) and math.prod(other) == math.prod(shape)]
        near = same or sorted(shapes, key=lambda other: abs(math.log(math.prod(other) / max(math.prod(shape), 1))))[:4]
        known = ", ".join(f"{chip.name}:{'x'.join(map(str, other))}" for other in near)
        raise UserError(f"--topology {text}: {chip.name} has no slice of that shape; nearest: {known}")
    return Topology(chip, shape)


def _slices(chip: Chip) -> dict[int, tuple[int, ...]]:
    """The most compact shape for every number of chips that exists."""
    compact: dict[int, tuple[int, ...]] = {}
    for shape in sorted(_shapes(chip), key=max):
        compact.setdefault(math.prod(shape), shape)
    return compact


def _shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Every shape in which a chip can be had (1), (2)."""
    if chip.group_size is not None:
        return [(1, count) for count in range(1, chip.group_size)] + [
            (nodes, chip.group_size) for nodes in range(1, _MOST_GPUS // chip.group_size + 1)
        ]
    if chip.name not in _LARGEST:
        return list(_FLAT)
    side, most = _LARGEST[chip.name]
    sides = itertools.combinations_with_replacement(range(4, side + 1, 4), 3)
    return [*_SMALL_CUBES, *(shape for shape in sides if math.prod(shape) <= most)]
