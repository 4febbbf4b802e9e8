"""Convolutions: the sum of the textbook."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import apply, compiled, param_shapes, random_array, random_params

from ldm_jax.config import MeshConfig
from ldm_jax.nn import conv
from ldm_jax.nn.conv import Conv, convolve
from ldm_jax.sharding import batch_sharding, make_mesh, replicated

SPATIAL = [(7,), (5, 6), (3, 4, 5)]


def convolve_by_hand(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Equation (1) of the module as a loop over the kernel's taps, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    spatial, sizes = x.shape[1:-1], kernel.shape[:-2]
    padded = np.pad(x, [(0, 0), *((size // 2,) * 2 for size in sizes), (0, 0)])
    result = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for tap in itertools.product(*map(range, sizes)):
        window = tuple(slice(start, start + length) for start, length in zip(tap, spatial, strict=True))
        result += padded[(slice(None), *window)] @ kernel[tap]
    return result


@pytest.mark.parametrize("spatial", SPATIAL)
def test_it_is_the_sum_over_the_taps(spatial: tuple[int, ...]) -> None:
    x = random_array(2, *spatial, 3)
    kernel = random_array(*(3,) * len(spatial), 3, 32, seed=1)
    np.testing.assert_allclose(compiled(convolve)(x, kernel), convolve_by_hand(x, kernel), atol=2e-5)


def test_a_kernel_of_one_position_is_a_matrix_product_over_channels() -> None:
    x, kernel = random_array(2, 4, 5, 3), random_array(1, 1, 3, 6, seed=1)
    np.testing.assert_allclose(compiled(convolve)(x, kernel), x @ kernel[0, 0], atol=1e-6)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_kernel_has_the_rank_of_the_input(kernel_size: int) -> None:
    for spatial in SPATIAL:
        shapes = param_shapes(Conv(5, kernel_size), random_array(1, *spatial, 3))
        assert shapes == {"kernel": (kernel_size,) * len(spatial) + (3, 5), "bias": (5,)}


def test_zero_init_starts_as_zero_and_the_usual_start_keeps_the_variance() -> None:
    x = random_array(4, 16, 16, 8)

    def first_output(conv: Conv) -> np.ndarray:
        return compiled(lambda x: conv.apply(conv.init(jax.random.key(0), x), x))(x)

    np.testing.assert_array_equal(first_output(Conv(8, zero_init=True)), np.zeros(x.shape))
    assert 0.5 < np.std(first_output(Conv(8))) < 1.5


def test_bfloat16_computes_in_bfloat16_with_float32_parameters() -> None:
    conv, x = Conv(32, dtype=jnp.bfloat16), random_array(1, 4, 4, 8)
    params = random_params(conv, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = apply(conv, params, x)
    assert y.dtype == jnp.bfloat16
    exact = convolve_by_hand(x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(y.astype(np.float32), exact, atol=0.05)


SHAPES = [((7,), ((1, 1),)), ((5, 6), ((1, 1), (1, 1))), ((4, 5), ((1, 0), (0, 1))), ((3, 2, 4), ((1, 1),) * 3)]


@pytest.mark.parametrize("strips", [1, 2, 3, 32])
@pytest.mark.parametrize("features", [8, 96])
@pytest.mark.parametrize(("spatial", "padding"), SHAPES)
def test_gradients_are_the_derivatives(
    spatial: tuple[int, ...], padding: tuple[tuple[int, int], ...], features: int, strips: int, monkeypatch
) -> None:
    """Of the kernel by shifts, and of the input with more channels than positions: both are formulated on a CPU."""
    sizes = tuple(1 + sum(pair) for pair in padding)
    x, kernel = random_array(2, *spatial, 12), random_array(*sizes, 12, features, seed=1) / 20
    gradient, numbers = random_array(2, *spatial, features, seed=2), "DHW"[-len(spatial) :]
    monkeypatch.setattr(conv, "SMALL_KERNEL", 0)
    monkeypatch.setattr(conv, "STRIP_VALUES", math.ceil(sizes[0] * x.size / strips))

    def by_xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        names = (f"N{numbers}C", f"{numbers}IO", f"N{numbers}C")
        return jax.lax.conv_general_dilated(x, kernel, (1,) * len(spatial), padding, dimension_numbers=names)

    def derivatives(operation):
        return compiled(lambda x, kernel, gradient: jax.vjp(operation, x, kernel)[1](gradient))(x, kernel, gradient)

    found = derivatives(lambda x, kernel: convolve(x, kernel, padding=padding))
    for ours, expected in zip(found, derivatives(by_xla), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", [(16,), (8, 8), (3, 4, 4)])
def test_devices_that_share_a_batch_gather_nothing_of_it(spatial: tuple[int, ...]) -> None:
    """Each sums the kernel's gradient over its own samples; one all-reduce adds the sums up."""
    mesh = make_mesh(MeshConfig(), jax.devices())
    x = jax.device_put(random_array(8, *spatial, 64), batch_sharding(mesh))
    kernel = jax.device_put(random_array(*(3,) * len(spatial), 64, 192, seed=1), replicated(mesh))
    assert kernel.size >= conv.SMALL_KERNEL
    of_kernel = jax.jit(lambda x, kernel, y: jax.vjp(convolve, x, kernel)[1](y)[1], out_shardings=replicated(mesh))
    y = jax.device_put(random_array(8, *spatial, 192, seed=2), batch_sharding(mesh))
    text = of_kernel.lower(x, kernel, y).compile().as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))
