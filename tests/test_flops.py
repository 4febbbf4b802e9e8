"""Counted operations against closed forms, through every kind of call that a step is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from accelerator_steps import mesh_of
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from ldm_jax.config import MeshConfig, load_experiment
from ldm_jax.flops import count_flops
from ldm_jax.model import make_model
from ldm_jax.nn.dot_product_attention import AttentionKernel, dot_product_attention

N = 8
MATRIX = jax.ShapeDtypeStruct((N, N), jnp.float32)
ONE = 2.0 * N**3
"""Operations of one product of two such matrices."""


def conv(x: Any, w: Any, stride: int = 1, groups: int = 1) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def test_a_dot_product_with_a_batch():
    left, right = jax.ShapeDtypeStruct((3, 5, 7), jnp.float32), jax.ShapeDtypeStruct((3, 7, 11), jnp.float32)
    assert count_flops(jnp.matmul, left, right) == 2 * 3 * 5 * 7 * 11


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_does(stride: int, groups: int):
    x = jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 8 // groups, 12), jnp.float32)
    forward = 2.0 * 2 * (16 // stride) ** 2 * 12 * 9 * 8 // groups

    def run(x: Any, w: Any) -> Any:
        return conv(x, w, stride, groups)

    assert count_flops(run, x, w) == forward
    gradients = count_flops(lambda x, w, dy: jax.vjp(run, x, w)[1](dy), x, w, jax.eval_shape(run, x, w))
    assert gradients == pytest.approx(2 * forward, rel=1e-12)


def in_scan(x: Any) -> Any:
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]


def in_while(x: Any) -> Any:
    return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)


def in_cond(x: Any) -> Any:
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)


def in_checkpoint(x: Any) -> Any:
    return jax.value_and_grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x @ x))(x).sum())(x)


def in_nested_jit(x: Any) -> Any:
    return jax.jit(lambda x: jax.jit(lambda x: x @ x)(x) @ x)(x)


@jax.custom_vjp
def square(x: Any) -> Any:
    return x @ x


square.defvjp(lambda x: (x @ x, x), lambda x, dy: (dy @ x,))


@jax.custom_jvp
def cube(x: Any) -> Any:
    return x @ x @ x


cube.defjvp(lambda x, dx: (cube(*x), dx[0]))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (in_scan, 5),
        (in_while, 1),
        (in_cond, 2),
        (in_checkpoint, 4),  # forward, again for the gradient, and the two gradients
        (in_nested_jit, 2),
        (square, 1),
        (cube, 2),
        (lambda x: jax.value_and_grad(lambda x: square(x).sum())(x), 2),
        (lambda x: jax.grad(lambda x: square(x).sum())(x), 1),  # what leads to no result is not computed
        (lambda x: jax.jit(lambda x: (x @ x, x + 1))(x)[1], 0),
        (jnp.sin, 0),
    ],
)
def test_what_is_called_is_counted(function: Callable[..., Any], products: int):
    assert count_flops(function, MATRIX) == products * ONE


def test_a_shard_map_counts_on_all_devices():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count_flops(jax.jit(rows), MATRIX, MATRIX) == ONE


def multiply(x: Any, y: Any, *, name: str) -> Any:
    def body(x: Any, y: Any, out: Any) -> None:
        out[...] = x[...] @ y[...]

    specs = [pl.BlockSpec((N // 2, N), lambda i, j: (i, 0)), pl.BlockSpec((N, N // 4), lambda i, j: (0, j))]
    block = pl.BlockSpec((N // 2, N // 4), lambda i, j: (i, j))
    return pl.pallas_call(body, out_shape=MATRIX, grid=(2, 4), in_specs=specs, out_specs=block, name=name)(x, y)


def test_a_pallas_kernel_counts_as_its_body_over_its_grid():
    assert count_flops(lambda x: multiply(x, x, name="plain"), MATRIX) == ONE


@pytest.mark.slow
def test_cudnns_kernels_count_as_attention():
    """Two products forward, five backward: the four of the gradient, and the weights again."""
    kernel = AttentionKernel.choose("auto", mesh_of("h100-8", MeshConfig()))
    query, key = (jax.ShapeDtypeStruct((16, length, 8, 64), jnp.bfloat16) for length in (1024, 128))

    def attend(query: Any, key: Any, value: Any) -> Any:
        return dot_product_attention(query, key, value, kernel=kernel).astype(jnp.float32).sum()

    product = 2 * 16 * 8 * 1024 * 128 * 64
    assert count_flops(attend, query, key, key) == 2 * product
    assert count_flops(jax.value_and_grad(attend, (0, 1, 2)), query, key, key) == 7 * product


@pytest.mark.parametrize(("gradient", "expected"), [(False, 803.3), pytest.param(True, 2406.8, marks=pytest.mark.slow)])
def test_the_unet_of_stable_diffusion(gradient: bool, expected: float):
    """Against an independent count of the same network, in billions a picture (docs/planning.md)."""
    plain = dataclasses.replace(load_experiment("zoo/sd1"), attention_kernel="reference")  # which recomputes nothing
    model = make_model(plain)
    params = jax.eval_shape(model.init_denoiser, jax.random.key(0))
    conditions = jax.eval_shape(lambda params: model.condition(params, model.null_inputs(1)), params)
    zt, t = jax.ShapeDtypeStruct((1, *model.latent_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)

    def run(denoiser: Any, zt: Any, t: Any, conditions: Any) -> Any:
        return model.denoise({"denoiser": denoiser}, zt, t, conditions).sum()

    counted = count_flops(jax.value_and_grad(run) if gradient else run, params["denoiser"], zt, t, conditions)
    assert counted / 1e9 == pytest.approx(expected, abs=0.05)
