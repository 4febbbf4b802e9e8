"""The collectives of a compiled program: kind, mesh axes, bytes, and how long the links need for them.

For a group of n chips, a payload of b bytes (the largest of what goes in and comes out of one chip) and links that move
w bytes a second out of a chip, all in the best case of a ring:

(1) all-reduce                              2 (n - 1) / n  b / w
(2) all-gather, reduce-scatter, all-to-all    (n - 1) / n  b / w
(3) collective-permute, broadcast                          b / w
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm_jax.planning.hlo import Instruction, Program, shape_bytes
from ldm_jax.planning.topology import Topology

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=@?\w*mesh\[(?P<axes>[^\]]*)\]"
    r"(?:, device_ids=\((?:\[(?P<reshape>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?|(?P<listed>[\d,\s]+))\))?\s*"
    r"\{(?P<over>[^}]*)\}"
)
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_BEGIN = 'custom_call_target="AsyncCollectiveStart"'
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of a step that are alike."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes over which it goes; empty where the groups are no axes of the mesh."""
    group_size: int
    """Chips that take part in one of them; 2, from one to another, in a permutation."""
    across_nodes: bool
    """Whether a group of GPUs reaches over more than one node."""
    asynchronous: bool
    """Whether the compiler starts it and goes on with other work until it is done."""
    count: int
    """How many a step has, those in loops as often as they run."""
    num_bytes: int
    """Payload of a chip, all of them together."""


def find_collectives(program: Program, mesh: dict[str, int], group_size: int | None) -> list[Collective]:
    """The collectives of a program on a mesh (axis sizes in the order of its devices), most bytes first.

    `group_size` is the number of GPUs in a node, None for TPUs.
    """
    totals: dict[Collective, list[int]] = defaultdict(lambda: [0, 0])
    begun = _begun(program)
    for computation, instruction, times in program.runs(into_fusions=True):
        kind = _kind(instruction, computation)
        if kind is None or begun.get(_channel(instruction), computation) != computation:
            continue
        group = _group(instruction.attributes, math.prod(mesh.values()))
        alike = Collective(
            kind=kind,
            axes=_axes(group, mesh, filled=kind != "collective-permute"),
            group_size=len(group),
            across_nodes=group_size is not None and len({member // group_size for member in group}) > 1,
            asynchronous=_is_asynchronous(instruction, computation) or _channel(instruction) in begun,
            count=0,
            num_bytes=0,
        )
        if len(group) > 1:
            totals[alike][0] += times
            totals[alike][1] += times * _payload(instruction, program.computations[computation])
    found = [dataclasses.replace(key, count=count, num_bytes=size) for key, (count, size) in totals.items()]
    return sorted(found, key=lambda collective: -collective.num_bytes)


def _begun(program: Program) -> dict[str | None, str]:
    """The computations in which channels begin that a TPU serves beside other work.

    It writes such a collective down where it begins, again in each fusion that works meanwhile, and where it is done.
    """
    begun: dict[str | None, str] = {}
    for name, instructions in program.computations.items():
        if any(_BEGIN in instruction.attributes for instruction in instructions.values()):
            channels = (_channel(each) for each in instructions.values() if _kind(each, name) is not None)
            begun |= {channel: name for channel in channels if channel is not None}
    return begun


def _channel(instruction: Instruction) -> str | None:
    match = _CHANNEL.search(instruction.attributes)
    return match[1] if match else None


def _kind(instruction: Instruction, computation: str) -> str | None:
    """The kind of collective that an instruction is or begins."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # TPU: an all-reduce of which each chip keeps a part, fused into one
    return kind


def _is_asynchronous(instruction: Instruction, computation: str) -> bool:
    started = instruction.opcode.endswith("-start") or "async" in computation
    return started and '"is_sync":true' not in instruction.attributes


def _payload(instruction: Instruction, computation: dict[str, Instruction]) -> int:
    """The larger of what goes in and what comes out of one chip."""
    given = sum(computation[name].num_bytes for name in instruction.operands if name in computation)
    result = shape_bytes(instruction.shape)
    holds_operands = instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start"
    return max(given, result - given if holds_operands else result)


def _group(attributes: str, num_chips: int) -> Sequence[int]:
    """The first group of chips, by their positions in the mesh, in any of the notations of XLA."""
    if match := _LISTED.search(attributes):
        return [int(member) for member in match[1].split(",")]
    if match := _IOTA.search(attributes):
        ids = _arranged(_numbers(match[2]), match[3])
        return ids.reshape(_numbers(match[1]))[0].tolist()
    if match := _MESH.search(attributes):
        return _group_of_mesh(match, num_chips)
    if match := _PAIRS.search(attributes):
        return sorted({int(match[1]), int(match[2])})
    return range(num_chips)


def _group_of_mesh(match: re.Match[str], num_chips: int) -> Sequence[int]:
    axes = dict(re.findall(r"'([^']+)'=(\d+)", match["axes"]))
    sizes = [int(size) for size in axes.values()]
    if match["listed"]:
        ids = np.array(_numbers(match["listed"]))
    elif match["reshape"]:
        ids = _arranged(_numbers(match["reshape"]), match["order"])
    else:
        ids = np.arange(num_chips)
    over = re.findall(r"'([^']+)'", match["over"])
    taken = tuple(slice(None) if axis in over else 0 for axis in axes)
    return ids.reshape(sizes)[taken].reshape(-1).tolist()


def _arranged(shape: list[int], order: str | None) -> np.ndarray:
    """Chips counted up in an array of a shape, its dimensions then reordered."""
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids if order is None else ids.transpose(_numbers(order))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _axes(group: Sequence[int], mesh: dict[str, int], *, filled: bool) -> tuple[str, ...]:
    """The mesh axes along which a group of positions reaches; empty where it has to fill them and does not."""
    coordinates = np.unravel_index(list(group), tuple(mesh.values()))
    axes = tuple(axis for axis, along in zip(mesh, coordinates, strict=True) if len(set(along.tolist())) > 1)
    return axes if not filled or math.prod(mesh[axis] for axis in axes) == len(group) else ()


def collective_seconds(collective: Collective, topology: Topology) -> float:
    """Time of the links (1) to (3)."""
    chip, n = topology.chip, collective.group_size
    if chip.platform == "tpu":  # a ring along one side of the torus
        rate = chip.link_bandwidth * (2 if topology.has_wrap_around else 1)
    else:
        slow = collective.across_nodes and chip.network_bandwidth is not None
        rate = chip.network_bandwidth if slow and chip.network_bandwidth else chip.link_bandwidth
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return share.get(collective.kind, (n - 1) / n) * collective.num_bytes / rate
