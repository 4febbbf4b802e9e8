"""The time embedding: the frequencies of the original code, cosines first."""

import numpy as np
import pytest
from module_trials import apply, compiled, param_shapes, random_array, random_params

from ldm_jax.nn.embeddings import VectorEmbedding, sinusoidal_embedding

T = np.array([0, 1, 17, 500, 999])


def embed(t: np.ndarray, dim: int, *convention: str) -> np.ndarray:
    return compiled(lambda t: sinusoidal_embedding(t, dim, *convention))(t)


@pytest.mark.parametrize("dim", [2, 16, 320])
def test_it_is_the_equation_in_float64(dim: int) -> None:
    half = dim // 2
    angle = np.asarray(T, np.float64)[:, None] * 10000.0 ** (-np.arange(half) / half)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(embed(T, dim), expected, atol=1e-4)  # float32 angles up to 999


def test_every_pair_lies_on_the_unit_circle() -> None:
    embedding = embed(np.linspace(0, 1000, 257, dtype=np.float32), 16)
    np.testing.assert_allclose(embedding[:, :8] ** 2 + embedding[:, 8:] ** 2, 1.0, atol=1e-5)


def test_time_zero_is_ones_then_zeros() -> None:
    np.testing.assert_array_equal(embed(np.array([0]), 8)[0], [1] * 4 + [0] * 4)


def test_an_odd_width_ends_with_a_zero() -> None:
    embedding = embed(T, 9)
    np.testing.assert_array_equal(embedding[:, :8], embed(T, 8))
    np.testing.assert_array_equal(embedding[:, 8], 0)


def test_whole_times_may_be_integers_or_floats() -> None:
    np.testing.assert_array_equal(embed(T, 16), embed(T.astype(np.float32), 16))


def test_different_times_are_told_apart() -> None:
    embedding = embed(np.arange(1000), 32)
    products = embedding @ embedding.T - 100 * np.eye(1000)
    assert products.max() < 15.99  # 16 for equal times


def test_the_layers_are_two_dense_ones_around_silu() -> None:
    module, vector = VectorEmbedding(16), random_array(len(T), 4)
    assert param_shapes(module, vector) == {
        "dense_0/kernel": (4, 16),
        "dense_0/bias": (16,),
        "dense_1/kernel": (16, 16),
        "dense_1/bias": (16,),
    }
    params = random_params(module, vector)
    h = vector.astype(np.float64) @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]
    expected = h / (1 + np.exp(-h)) @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
    np.testing.assert_allclose(apply(module, params, vector), expected, atol=1e-5)


def test_the_other_convention_has_sines_first_and_ends_at_the_lowest_frequency() -> None:
    ours, theirs = embed(T, 16), embed(T, 16, "half", "sin_cos")
    np.testing.assert_array_equal(theirs, np.concatenate([ours[:, 8:], ours[:, :8]], axis=-1))
    last = embed(T, 16, "half_minus_one")[:, 7]
    np.testing.assert_allclose(last, np.cos(T / 10000), atol=1e-6)
