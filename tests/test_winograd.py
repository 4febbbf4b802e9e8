"""Convolutions by fewer products: the numbers of the plain sum, whole or by strips of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from module_trials import compiled, random_array

from ldm_jax.nn import winograd
from ldm_jax.nn.conv import convolve
from ldm_jax.nn.winograd import convolve_filtering, filtering_gradients, has_quick_filtering


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def assert_close(result: np.ndarray, truth: np.ndarray) -> None:
    np.testing.assert_allclose(result, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("room", [None, 1, 30_000])
@pytest.mark.parametrize("shape", [(2, 6, 8), (1, 9, 4), (3, 1, 12)])
def test_it_and_its_gradients_are_those_of_the_plain_sum(
    shape: tuple[int, int, int], room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if room is not None:
        monkeypatch.setattr(winograd, "_ROOM", room)  # strips of one row, or of a few
    x, kernel = (jnp.asarray(random_array(*dims, seed=i)) for i, dims in enumerate([(*shape, 5), (3, 3, 5, 7)]))
    gradient = jnp.asarray(random_array(*shape, 7, seed=2))
    truth, pull = jax.vjp(plain, x, kernel)
    assert_close(compiled(convolve_filtering)(x, kernel), truth)
    for result, wanted in zip(compiled(filtering_gradients)(x, kernel, gradient), pull(gradient), strict=True):
        assert_close(result, wanted)


def test_a_wide_convolution_takes_it_with_its_gradients() -> None:
    x, kernel = jnp.asarray(random_array(1, 4, 8, 96)), 0.03 * jnp.asarray(random_array(3, 3, 96, 100, seed=1))
    assert has_quick_filtering(x, kernel)

    def loss(convolve, x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel)))

    assert_close(compiled(convolve)(x, kernel), plain(x, kernel))
    results = compiled(jax.grad(lambda x, k: loss(convolve, x, k), (0, 1)))(x, kernel)
    for result, truth in zip(results, jax.grad(lambda x, k: loss(plain, x, k), (0, 1))(x, kernel), strict=True):
        assert_close(result, truth)


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        ((1, 4, 6, 96), (3, 3, 96, 96)),
        ((1, 4, 8, 64), (3, 3, 64, 96)),
        ((1, 4, 8, 96), (1, 1, 96, 96)),
        ((1, 8, 96), (3, 96, 96)),
        ((1, 4, 4, 8, 96), (3, 3, 3, 96, 96)),
    ],
)
def test_what_it_does_not_fit_is_left_alone(x: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    assert not has_quick_filtering(jnp.zeros(x), jnp.zeros(kernel))


def test_numbers_of_fewer_bits_are_left_alone() -> None:
    x, kernel = jnp.zeros((1, 4, 8, 96), jnp.bfloat16), jnp.zeros((3, 3, 96, 96), jnp.bfloat16)
    assert not has_quick_filtering(x, kernel)
