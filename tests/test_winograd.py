"""Convolutions by fewer products: the numbers of the plain sum, whole or by strips of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from module_trials import compiled, random_array

from ldm_jax.nn import winograd
from ldm_jax.nn.conv import convolve
from ldm_jax.nn.winograd import convolve_filtering, has_quick_filtering


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_close(result: np.ndarray, truth: np.ndarray) -> None:
    np.testing.assert_allclose(result, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("room", [None, 1, 30_000])
@pytest.mark.parametrize("shape", [(2, 6, 8), (1, 9, 4), (3, 1, 12)])
def test_it_is_the_plain_sum(shape: tuple[int, int, int], room: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if room is not None:
        monkeypatch.setattr(winograd, "_ROOM", room)  # strips of one row, or of a few
    x, kernel = jnp.asarray(random_array(*shape, 5)), jnp.asarray(random_array(3, 3, 5, 7, seed=1))
    assert_close(compiled(convolve_filtering)(x, kernel), plain(x, kernel))


def test_a_wide_convolution_takes_it_unless_it_is_trained() -> None:
    x, kernel = jnp.asarray(random_array(1, 32, 32, 192)), 0.03 * jnp.asarray(random_array(3, 3, 192, 200, seed=1))
    assert has_quick_filtering(x, kernel)
    result = compiled(convolve)(x, kernel)
    assert_close(result, plain(x, kernel))
    trained, pull = jax.vjp(convolve, x, kernel)
    assert not np.array_equal(result, trained)  # it was taken
    np.testing.assert_array_equal(trained, plain(x, kernel))
    for gradient, truth in zip(pull(trained), jax.vjp(plain, x, kernel)[1](trained), strict=True):
        assert_close(gradient, truth)


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((1, 32, 34, 192), (3, 3, 192, 192)),
        ((1, 32, 32, 128), (3, 3, 128, 192)),
        ((1, 16, 16, 192), (3, 3, 192, 192)),
        ((1, 32, 32, 192), (1, 1, 192, 192)),
        ((1, 1024, 192), (3, 192, 192)),
        ((1, 4, 16, 16, 192), (3, 3, 3, 192, 192)),
    ],
)
def test_what_it_does_not_fit_is_left_alone(x: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    assert not has_quick_filtering(jnp.zeros(x), jnp.zeros(kernel))


def test_numbers_of_fewer_bits_are_left_alone() -> None:
    x, kernel = jnp.zeros((1, 32, 32, 192), jnp.bfloat16), jnp.zeros((3, 3, 192, 192), jnp.bfloat16)
    assert not has_quick_filtering(x, kernel)
