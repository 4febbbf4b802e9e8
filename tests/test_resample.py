"""Changes of resolution: inverses where they are meant to be, and alignment with the PyTorch layers."""

import jax
import numpy as np
import pytest
from module_trials import abstract_call, apply, compiled, param_shapes, random_array, replaced

from ldm_jax.nn.conv import convolve
from ldm_jax.nn.resample import (
    Downsample,
    Upsample,
    depth_to_space,
    downsample_mean,
    resampling_factors,
    space_to_depth,
    upsample_and_convolve,
    upsample_nearest,
)

SPATIAL = [(6,), (4, 6), (3, 4, 6)]


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("blocks", [(3,), (2, 3), (1, 2, 3)])
def test_depth_to_space_undoes_space_to_depth(blocks: tuple[int, ...], factor: int) -> None:
    x = random_array(2, *(n * factor for n in blocks), 2)
    packed = compiled(lambda x: space_to_depth(x, factor))(x)
    assert packed.shape == (2, *blocks, 2 * factor ** len(blocks))
    np.testing.assert_array_equal(compiled(lambda x: depth_to_space(x, factor))(packed), x)


def test_space_to_depth_puts_block_positions_before_channels() -> None:
    x = random_array(1, 4, 6, 3)
    packed = compiled(lambda x: space_to_depth(x, 2))(x)
    for row, column in np.ndindex(2, 3):
        block = x[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(packed[0, row, column], block.reshape(-1))


@pytest.mark.parametrize("spatial", SPATIAL)
def test_the_mean_of_a_repeated_picture_is_the_picture(spatial: tuple[int, ...]) -> None:
    x = random_array(2, *spatial, 3)
    larger = compiled(upsample_nearest)(x)
    factors = resampling_factors(len(spatial))
    assert larger.shape == (2, *(n * f for n, f in zip(spatial, factors, strict=True)), 3)
    np.testing.assert_allclose(compiled(downsample_mean)(larger), x, rtol=1e-6)


def test_upsampling_repeats_each_position() -> None:
    x = random_array(1, 2, 3, 1)
    np.testing.assert_array_equal(compiled(upsample_nearest)(x)[0, :, :, 0], np.kron(x[0, :, :, 0], np.ones((2, 2))))


@pytest.mark.parametrize("size", [(3, 5), (4, 6), (5, 7), (4, 7)])
def test_upsampling_to_another_size_takes_the_position_in_proportion(size: tuple[int, int]) -> None:
    """Halving 3 and 5 with rounding up has given the 2 and 3 here, halving 5 and 7 with rounding down too."""
    x = random_array(1, 2, 3, 1)
    rows, columns = (np.floor(np.arange(n) * old / n).astype(int) for n, old in zip(size, (2, 3), strict=True))
    larger = compiled(lambda x: upsample_nearest(x, size))(x)
    np.testing.assert_array_equal(larger, x[:, rows][:, :, columns])


def test_volumes_keep_their_depth() -> None:
    assert resampling_factors(3) == (1, 2, 2)
    x = random_array(1, 3, 4, 4, 2)
    assert jax.eval_shape(upsample_nearest, x).shape == (1, 3, 8, 8, 2)
    assert jax.eval_shape(downsample_mean, x).shape == (1, 3, 2, 2, 2)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_the_layers_double_and_halve(spatial: tuple[int, ...]) -> None:
    x = random_array(1, *spatial, 2)
    kernel = {"conv/kernel": (3,) * len(spatial) + (2, 2), "conv/bias": (2,)}
    for layer, resize in (
        (Upsample(), upsample_nearest),
        (Downsample(symmetric=True), downsample_mean),
        (Downsample(symmetric=False), downsample_mean),
    ):
        output, _ = abstract_call(layer, x)
        assert output.shape == jax.eval_shape(resize, x).shape
        assert param_shapes(layer, x) == kernel


@pytest.mark.parametrize(("symmetric", "first"), [(True, 0), (False, 1)])
def test_the_centre_of_the_kernel_is_where_pytorch_has_it(symmetric: bool, first: int) -> None:
    """The U-Net pads both sides, so its windows are centred on even positions; the autoencoder pads the end only."""
    x = random_array(1, 6, 6, 1)
    centre = replaced(np.zeros((3, 3, 1, 1), np.float32), (1, 1), 1.0)
    params = {"conv": {"kernel": centre, "bias": np.zeros(1, np.float32)}}
    np.testing.assert_array_equal(apply(Downsample(symmetric=symmetric), params, x), x[:, first::2, first::2])


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 2)])
def test_phases_are_the_convolution_of_the_repeated_positions(spatial: tuple[int, ...]) -> None:
    """Value and both gradients of what a CPU computes in place of the longer way."""
    x, kernel = random_array(2, *spatial, 32), random_array(*(3,) * len(spatial), 32, 64, seed=1) / 10
    gradient = random_array(*abstract_upsampled(x), 64, seed=2)

    def both(operation):
        def value_and_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
            value, backward = jax.vjp(operation, x, kernel)
            return value, *backward(gradient)

        return compiled(value_and_gradients)(x, kernel, gradient)

    ours = both(upsample_and_convolve)
    plain = both(lambda x, kernel: convolve(upsample_nearest(x), kernel))
    for found, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def abstract_upsampled(x: np.ndarray) -> tuple[int, ...]:
    """Batch and positions of what `upsample_nearest` makes."""
    return jax.eval_shape(upsample_nearest, x).shape[:-1]


def test_a_cpu_multiplies_less_for_phases() -> None:
    x, kernel = random_array(1, 16, 16, 32), random_array(3, 3, 32, 32, seed=1)
    costs = [
        jax.jit(operation).lower(x, kernel).compile().cost_analysis() or {}
        for operation in (upsample_and_convolve, lambda x, kernel: convolve(upsample_nearest(x), kernel))
    ]
    assert costs[0]["flops"] < 0.6 * costs[1]["flops"]
