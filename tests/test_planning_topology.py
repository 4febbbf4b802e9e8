"""Names of topologies and meshes: what exists is found, what does not is refused with what does."""

import math

import pytest

from ldm_jax.config import MeshConfig
from ldm_jax.errors import UserError
from ldm_jax.planning.meshes import candidate_meshes, fit_mesh, mesh_name, parse_mesh
from ldm_jax.planning.targets import gpu_target
from ldm_jax.planning.topology import PLANNED, parse_topology


@pytest.mark.parametrize(
    ("text", "shape", "layout"),
    [
        ("v5p-64", (4, 4, 4), "4x4x4"),
        ("v5p:4x4x4", (4, 4, 4), "4x4x4"),
        ("V5P-8", (2, 2, 2), "2x2x2"),
        ("v5p-6144", (16, 16, 24), "16x16x24"),
        ("v4-4096", (16, 16, 16), "16x16x16"),
        ("v5e-1", (1, 1), "1x1"),
        ("v5e-16", (4, 4), "4x4"),
        ("v6e-256", (16, 16), "16x16"),
        ("h100-2", (1, 2), "1x1x2"),
        ("h100-64", (8, 8), "1x8x8"),
    ],
)
def test_a_name_is_a_shape(text: str, shape: tuple[int, ...], layout: str):
    topology = parse_topology(text)
    assert (topology.shape, topology.layout) == (shape, layout)
    assert topology.num_chips == math.prod(shape)


@pytest.mark.parametrize("name", PLANNED)
def test_a_name_written_by_number_is_read_again(name: str):
    topology = parse_topology(f"{name}-8")
    assert topology.chip.name == name
    assert parse_topology(topology.name) == topology


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "--topology v5p is not NAME-CHIPS, such as v5p-64 or h100-8, nor NAME:SHAPE as v5p:4x4x4"),
        ("v7-8", "unknown accelerator 'v7'; known: v4, v5e, v5p, v6e, a100, h100, h200"),
        ("v5p-63", "there is no v5p group of 63 chips; nearest: v5p-32, v5p-64, v5p-128, v5p-192"),
        ("v5e-0", "there is no v5e group of 0 chips; nearest: v5e-1, v5e-4, v5e-8, v5e-16"),
        ("h100-12", "there is no h100 group of 12 GPUs; nearest: h100-6, h100-7, h100-8, h100-16"),
        ("v5e:2x8", "v5e has no slice of that shape; nearest: v5e:4x4"),
        ("h100:2x8", "GPUs come in nodes of eight, not in shapes; use h100-8"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(text: str, message: str):
    with pytest.raises(UserError) as error:
        parse_topology(text)
    assert message in str(error.value)


def test_only_whole_sides_are_rings():
    assert parse_topology("v5p-64").has_wrap_around
    assert not parse_topology("v5p-8").has_wrap_around
    assert not parse_topology("v5e-64").has_wrap_around
    assert parse_topology("v5e-256").has_wrap_around
    assert not parse_topology("h100-64").has_wrap_around


@pytest.mark.parametrize(
    ("text", "mesh"),
    [
        ("data=8,fsdp=8", MeshConfig(data=8, fsdp=8)),
        ("fsdp=16", MeshConfig(data=4, fsdp=16)),
        ("tensor=2, fsdp=4", MeshConfig(data=8, fsdp=4, tensor=2)),
    ],
)
def test_a_mesh_is_read_and_filled_up(text: str, mesh: MeshConfig):
    assert parse_mesh(text, 64) == mesh
    assert parse_mesh(mesh_name(mesh), 64) == mesh


@pytest.mark.parametrize("text", ["model=8", "data=0", "data", "data=2,data=4", "", "data=-1"])
def test_a_malformed_mesh_is_refused(text: str):
    with pytest.raises(UserError, match="is not AXIS=SIZE with an axis of data, fsdp, tensor, each once"):
        parse_mesh(text, 64)


def test_a_mesh_of_another_size_is_refused_with_some_that_fit():
    message = (
        "the mesh data=3,fsdp=8 does not multiply to 16 chips; meshes that do: "
        "--mesh data=16,fsdp=1, --mesh data=2,fsdp=8, --mesh data=1,fsdp=16"
    )
    with pytest.raises(UserError) as error:
        fit_mesh(MeshConfig(data=3, fsdp=8), 16)
    assert str(error.value) == message


def test_every_candidate_fills_the_chips():
    meshes = list(candidate_meshes(48))
    assert {mesh.data * mesh.fsdp * mesh.tensor for mesh in meshes} == {48}
    assert len(set(meshes)) == len(meshes)
    assert MeshConfig(data=3, fsdp=8, tensor=2) in meshes


@pytest.mark.parametrize("name", [name for name in PLANNED if name.endswith("00")])
def test_every_gpu_is_described_to_the_compiler(name: str):
    assert f"NVIDIA {name.upper()}" in gpu_target(name)
