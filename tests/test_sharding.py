"""Placement on a mesh: the two rules, their messages, and that a sharded network computes what a whole one does."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from module_trials import abstract_params, compiled, random_array, random_params

from ldm_jax.config import MeshConfig, UNetConfig
from ldm_jax.denoiser.unet import UNet
from ldm_jax.errors import UserError
from ldm_jax.sharding import (
    MIN_FSDP_SIZE,
    batch_sharding,
    check_batch_size,
    check_tensor_axis,
    local_rows,
    make_gather,
    make_mesh,
    num_batch_shards,
    parameter_spec,
    path_names,
    put_batch,
    replicated,
    state_shardings,
)

FSDP = make_mesh(MeshConfig(data=1, fsdp=8))
MIXED = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
LAYER = ("denoiser", "down_0", "conv_in", "kernel")  # a layer that the tensor table does not know


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=2, fsdp=4), (2, 4, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=-1), (2, 2, 2)),
    ],
)
def test_the_mesh_has_the_sizes_asked_for(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert mesh.devices.size == 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh looks at of a device of a TPU slice."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "chip"

    @property
    def process_index(self) -> int:
        """Two chips a host."""
        return self.id // 2


SLICES = [Chip(i, i // 4) for i in range(8)]


@pytest.mark.parametrize(
    ("config", "shape", "crossing"),
    [
        (MeshConfig(), (8, 1, 1), "data"),
        (MeshConfig(data=2, fsdp=-1), (2, 4, 1), "data"),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2), "data"),
        (MeshConfig(data=1, fsdp=-1, across_slices="fsdp"), (1, 8, 1), "fsdp"),
        (MeshConfig(data=2, fsdp=4, across_slices="fsdp"), (2, 4, 1), "fsdp"),
    ],
)
def test_one_axis_crosses_slices_and_the_others_stay_inside(
    config: MeshConfig, shape: tuple[int, ...], crossing: str
) -> None:
    mesh = make_mesh(config, SLICES)
    assert tuple(mesh.shape.values()) == shape
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(8))
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    for i, axis in enumerate(mesh.axis_names):
        differs = (np.diff(slices, axis=i) != 0).sum(axis=i)
        assert (differs == (1 if axis == crossing else 0)).all()  # neighbours change slices once, or never


def test_an_axis_that_cannot_cross_the_slices_is_refused_with_one_that_can() -> None:
    message = (
        "--mesh.data 1 crosses 2 slices of 4 devices and is not a multiple of 2; sizes that work: --mesh.data 2 "
        "--mesh.fsdp 4 --mesh.tensor 1"
    )
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(data=1, fsdp=8), SLICES)
    assert str(error.value) == message
    assert make_mesh(MeshConfig(data=2, fsdp=4), SLICES).shape["fsdp"] == 4


@pytest.mark.parametrize("across", ["data", "fsdp"])
def test_the_sizes_offered_cross_the_slices(across: Any) -> None:
    for config in (MeshConfig(data=16), MeshConfig(data=3, fsdp=5), MeshConfig(fsdp=3)):
        config = dataclasses.replace(config, across_slices=across)
        with pytest.raises(UserError) as error:
            make_mesh(config, SLICES)
        offered = int(str(error.value).split("--mesh.fsdp ")[-1].split()[0])
        assert make_mesh(dataclasses.replace(config, data=-1, fsdp=offered), SLICES).size == 8


def test_a_tensor_axis_needs_a_layer_to_split() -> None:
    params = {"attention": {"query": {"kernel": jnp.zeros((8, 6))}, "skip": {"kernel": jnp.zeros((8, 8))}}}
    check_tensor_axis(make_mesh(MeshConfig(data=4, tensor=2)), params)
    check_tensor_axis(make_mesh(MeshConfig()), {})
    with pytest.raises(UserError) as error:
        check_tensor_axis(make_mesh(MeshConfig(data=2, tensor=4)), params)
    assert str(error.value) == (
        "--mesh.tensor 4 splits no layer of this model (their sizes: 6); sizes that work on 8 devices: 1, 2"
    )


def test_a_mesh_of_some_devices() -> None:
    assert make_mesh(MeshConfig(), jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MeshConfig(data=3, fsdp=2),
            "--mesh.data 3 --mesh.fsdp 2 --mesh.tensor 1 needs 6 devices, but there are 8; sizes that work: "
            "--mesh.data -1 --mesh.fsdp 4 --mesh.tensor 1",
        ),
        (
            MeshConfig(data=-1, fsdp=3),
            "--mesh.data -1 --mesh.fsdp 3 --mesh.tensor 1 needs a multiple of 3 devices, but there are 8; sizes that "
            "work: --mesh.data -1 --mesh.fsdp 2 --mesh.tensor 1",
        ),
        (MeshConfig(data=1, fsdp=4), "needs 4 devices, but there are 8"),
        (MeshConfig(data=16), "needs 16 devices, but there are 8"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_sizes_that_do(config: MeshConfig, message: str) -> None:
    with pytest.raises(UserError) as error:
        make_mesh(config)
    assert message in str(error.value)


def test_the_sizes_offered_work() -> None:
    for fsdp in (3, 5, 6, 7, 9, 100):
        with pytest.raises(UserError) as error:
            make_mesh(MeshConfig(data=-1, fsdp=fsdp))
        offered = int(str(error.value).split("--mesh.fsdp ")[-1].split()[0])
        assert make_mesh(MeshConfig(data=-1, fsdp=offered)).devices.size == 8


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),  # the largest dimension
        ((3, 3, 128, 64), P(None, None, "fsdp", None)),
        ((1001, 512), P(None, "fsdp")),  # the largest that 8 divides
        ((77, 1001), P(None, None)),  # none that 8 divides
        ((4096,), P("fsdp")),
        ((64, 32), P(None, None)),  # small: not worth a gather
        ((), P()),
    ],
)
def test_large_parameters_are_split_along_their_largest_divisible_dimension(shape: tuple[int, ...], spec: P) -> None:
    assert parameter_spec(LAYER, shape, FSDP) == spec


def test_the_smallest_parameter_that_is_split() -> None:
    assert parameter_spec(LAYER, (MIN_FSDP_SIZE,), FSDP) == P("fsdp")
    assert parameter_spec(LAYER, (MIN_FSDP_SIZE - 8,), FSDP) == P(None)


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 512), max_size=4).map(tuple),
    layer=st.sampled_from(["query", "out", "dense_0", "dense_1", "conv_0", "conv_1", "skip", "norm_out"]),
    leaf=st.sampled_from(["kernel", "bias", "scale"]),
)
def test_every_spec_can_be_placed(shape: tuple[int, ...], layer: str, leaf: str) -> None:
    for mesh in (FSDP, MIXED):
        spec = parameter_spec(("denoiser", layer, leaf), shape, mesh)
        assert len(spec) == len(shape)
        NamedSharding(mesh, spec).shard_shape(shape)  # raises where a size is not divisible
        named = [axis for axis in spec if axis is not None]
        assert len(named) == len(set(named)) and "data" not in named


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("attention/query/kernel", (64, 128), P("fsdp", "tensor")),
        ("attention/query/bias", (128,), P("tensor")),
        ("attention/out/kernel", (128, 64), P("tensor", "fsdp")),
        ("attention/out/bias", (64,), P(None)),
        ("feed_forward/dense_0/kernel", (64, 256), P("fsdp", "tensor")),
        ("feed_forward/dense_1/kernel", (256, 64), P("tensor", "fsdp")),
        ("resnet/conv_0/kernel", (3, 3, 64, 128), P(None, None, "fsdp", "tensor")),
        ("resnet/conv_1/kernel", (3, 3, 128, 128), P(None, None, "tensor", "fsdp")),
        ("resnet/skip/kernel", (1, 1, 64, 128), P(None, None, None, "fsdp")),
        ("attention/query/kernel", (8, 7), P(None, None)),  # an output that 2 does not divide
        ("attention/query/kernel", (8, 10), P(None, "tensor")),  # small, but its work is shared
        ("norm_0/scale", (128,), P(None)),
        ("attention/query/kernel", (), P()),  # an optimizer's number for each parameter
    ],
)
def test_the_tensor_table_splits_outputs_then_inputs(path: str, shape: tuple[int, ...], spec: P) -> None:
    assert parameter_spec(tuple(path.split("/")), shape, MIXED) == spec


def test_without_fsdp_and_tensor_everything_is_replicated() -> None:
    assert parameter_spec(("attention", "query", "kernel"), (512, 512), make_mesh(MeshConfig())) == P(None, None)


def unet_params() -> dict:
    unet = UNet(UNetConfig(base_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,)), 4)
    return abstract_params(unet, jnp.zeros((1, 8, 8, 4)), jnp.zeros((1,), jnp.int32), jnp.zeros((1, 5, 32)))


def test_fsdp_leaves_about_its_share_of_a_unet_on_each_device() -> None:
    params = unet_params()
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(state_shardings(FSDP, params)), strict=True)
    sizes = [(leaf.size, int(np.prod(sharding.shard_shape(leaf.shape)))) for leaf, sharding in leaves]
    whole, share = map(sum, zip(*sizes, strict=True))
    assert whole / 8 <= share <= whole / 7


def test_moments_of_the_optimizer_lie_where_their_parameters_lie() -> None:
    params = unet_params()
    placed = jax.tree.leaves(state_shardings(MIXED, params))
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    adam = state_shardings(MIXED, state)[0]
    assert jax.tree.leaves(adam.mu) == placed and jax.tree.leaves(adam.nu) == placed
    assert adam.count.spec == P()


def test_shares_are_made_whole_in_the_type_that_layers_take_and_gradients_come_back_in_shares() -> None:
    params = {"conv": {"kernel": random_array(3, 3, 16, 64), "bias": jnp.ones(64)}, "table": random_array(64, 80)}
    shardings = state_shardings(FSDP, params)
    placed, gather = jax.device_put(params, shardings), make_gather(FSDP, jnp.bfloat16)
    whole = jax.jit(gather)(placed)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(whole))
    assert whole["conv"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(whole["conv"]["kernel"], params["conv"]["kernel"].astype(jnp.bfloat16))
    jax.tree.map(
        np.testing.assert_array_equal, (whole["conv"]["bias"], whole["table"]), (jnp.ones(64), params["table"])
    )

    def loss(params):
        return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gather(params)))

    gradient = jax.jit(jax.grad(loss))(placed)
    assert jax.tree.map(lambda leaf: leaf.sharding.spec, gradient) == jax.tree.map(lambda s: s.spec, shardings)
    np.testing.assert_array_equal(gradient["table"], 2 * params["table"])
    assert gradient["conv"]["kernel"].dtype == jnp.float32


def test_where_nothing_is_shared_nothing_is_gathered() -> None:
    params = {"conv": {"kernel": jnp.asarray(random_array(3, 3, 64, 64))}}
    assert make_gather(make_mesh(MeshConfig()), jnp.bfloat16)(params)["conv"]["kernel"] is params["conv"]["kernel"]


def test_path_names_are_the_keys_of_any_tree() -> None:
    state = optax.adam(1e-3).init({"layer": {"kernel": jnp.zeros(2)}})
    names = {path_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    assert ("0", "mu", "layer", "kernel") in names and ("0", "count") in names


def test_one_process_holds_all_rows() -> None:
    assert local_rows(MIXED, 8) == tuple(range(8))


@pytest.mark.parametrize("mesh", [FSDP, MIXED])
def test_a_batch_is_split_over_data_and_fsdp(mesh) -> None:
    rows = np.arange(32, dtype=np.float32).reshape(8, 4)
    batch = put_batch(mesh, {"image": rows, "sample_index": np.arange(8)})
    assert batch["image"].sharding == batch_sharding(mesh)
    assert {s.data.shape for s in batch["image"].addressable_shards} == {(8 // num_batch_shards(mesh), 4)}
    np.testing.assert_array_equal(batch["image"], rows)
    np.testing.assert_array_equal(batch["sample_index"], np.arange(8))
    assert replicated(mesh).shard_shape((8, 4)) == (8, 4)


def test_a_batch_that_cannot_be_split_is_refused_with_the_nearest_that_can() -> None:
    check_batch_size("training", 16, 2, FSDP)
    for size, nearest in ((20, "16 and 32"), (3, "16 and 32"), (33, "32 and 48")):
        with pytest.raises(UserError) as error:
            check_batch_size("training", size, 2, FSDP)
        assert str(error.value) == (
            f"training.batch_size={size} cannot be split over 8 devices and 2 micro-batches; "
            f"nearest that can: {nearest}"
        )


def test_a_sharded_unet_computes_what_a_whole_one_does() -> None:
    config = UNetConfig(
        base_channels=32, channel_mult=(1,), num_res_blocks=1, num_groups=4, attention_levels=(), num_head_channels=8
    )
    unet = UNet(config, 4)
    inputs = (random_array(4, 4, 4, 4), np.array([1, 10, 500, 999]), random_array(4, 3, 8))
    params = random_params(unet, *inputs)
    shardings = state_shardings(MIXED, params)
    used = {axis for sharding in jax.tree.leaves(shardings) for axis in sharding.spec}
    assert used == {None, "fsdp", "tensor"}

    def forward(params, *inputs):
        return unet.apply({"params": params}, *inputs)

    whole = compiled(forward)(params, *inputs)
    sharded = jax.jit(forward)(jax.device_put(params, shardings), *jax.device_put(inputs, batch_sharding(MIXED)))
    np.testing.assert_allclose(sharded, whole, atol=1e-5)
    assert len(sharded.sharding.device_set) == 8
