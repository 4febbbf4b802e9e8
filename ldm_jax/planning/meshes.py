"""Meshes of a plan: read from the command line, checked, and enumerated for the search."""

import dataclasses
import math
from collections.abc import Iterator

from ldm_jax.config import MeshConfig, nearest_divisor
from ldm_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


def parse_mesh(text: str, num_chips: int) -> MeshConfig:
    """The mesh that `data=8,fsdp=8` describes; an axis that is not named is 1, and `data` the rest.

    Raises:
        UserError: it is malformed, or does not fit the number of chips.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in MESH_AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(
                f"--mesh {text}: {part.strip()!r} is not AXIS=SIZE with an axis of {', '.join(MESH_AXES)}, each once; "
                "for example --mesh data=8,fsdp=8"
            )
        sizes[name] = int(size)
    mesh = MeshConfig(data=sizes.get("data", -1), fsdp=sizes.get("fsdp", 1), tensor=sizes.get("tensor", 1))
    return fit_mesh(mesh, num_chips)


def fit_mesh(mesh: MeshConfig, num_chips: int) -> MeshConfig:
    """The mesh with the axis of -1 worked out.

    Raises:
        UserError: its sizes do not multiply to the number of chips; the message offers some that do.
    """
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    given = math.prod(size for size in sizes.values() if size != -1)
    if num_chips % given or (-1 not in sizes.values() and given != num_chips):
        fsdp = nearest_divisor(num_chips, sizes["fsdp"] if sizes["fsdp"] != -1 else 1)
        usable = sorted({(num_chips, 1), (num_chips // fsdp, fsdp), (1, num_chips)}, reverse=True)
        raise UserError(
            f"the mesh {mesh_name(mesh)} does not multiply to {num_chips} chips; meshes that do: "
            + ", ".join(f"--mesh data={data},fsdp={fsdp}" for data, fsdp in usable)
        )
    data, fsdp, tensor = (num_chips // given if size == -1 else size for size in sizes.values())
    return dataclasses.replace(mesh, data=data, fsdp=fsdp, tensor=tensor)


def mesh_name(mesh: MeshConfig) -> str:
    """As the command line takes it, without axes of 1 (but for `data`)."""
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1 or axis == "data")


def candidate_meshes(num_chips: int) -> Iterator[MeshConfig]:
    """Meshes worth a try: parameters whole or split over powers of two, and layers over up to four chips."""
    for tensor in (1, 2, 4):
        fsdp = 1
        while fsdp * tensor <= num_chips:
            if num_chips % (fsdp * tensor) == 0:
                yield MeshConfig(data=num_chips // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
            fsdp *= 2
