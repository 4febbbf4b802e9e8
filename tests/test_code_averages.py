"""A codebook that follows its latents by moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.autoencoder.code_averages import CodeAverages, follow, restart


def test_the_averages_begin_with_the_codes():
    codes = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    averages = CodeAverages.of_codes(codes)
    np.testing.assert_allclose(averages.codes, codes, rtol=1e-6)
    assert float(jnp.sum(averages.share)) == pytest.approx(1.0)


def test_a_code_goes_to_the_mean_of_the_vectors_that_choose_it():
    averages = CodeAverages.of_codes(jnp.zeros((2, 3)))
    share, mean = jnp.asarray([0.75, 0.25]), jnp.asarray([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])
    for _ in range(2000):
        averages = follow(averages, share, mean * share[:, None], 0.99)
    np.testing.assert_allclose(averages.codes, mean, rtol=1e-4)
    np.testing.assert_allclose(averages.share, share, rtol=1e-4)


def test_a_code_that_nothing_chooses_stays_where_it_is():
    codes = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    averages = follow(CodeAverages.of_codes(codes), jnp.asarray([1.0, 0.0]), jnp.asarray([[0.0, 0.0], [0.0, 0.0]]), 0.9)
    np.testing.assert_allclose(averages.codes[1], codes[1], rtol=1e-6)


def test_dead_codes_move_beside_the_codes_used_most_and_share_their_use():
    codes = jnp.asarray([[10.0, 0.0], [0.0, 10.0], [-50.0, -50.0], [7.0, 7.0]])
    averages = CodeAverages(jnp.asarray([0.6, 0.3, 0.001, 0.099]), jnp.zeros((4, 2)))
    averages = averages._replace(total=codes * averages.share[:, None])
    moved = restart(averages, 0.1, jax.random.key(0))
    np.testing.assert_allclose(moved.codes[2], codes[0], atol=1.0)
    assert float(jnp.linalg.norm(moved.codes[2] - codes[0])) > 0
    np.testing.assert_allclose(moved.codes[jnp.asarray([0, 1, 3])], codes[jnp.asarray([0, 1, 3])], rtol=1e-5)
    np.testing.assert_allclose(moved.share, [0.3, 0.3, 0.3, 0.099], rtol=1e-5)


def test_where_none_is_dead_nothing_moves():
    averages = CodeAverages.of_codes(jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32))
    moved = restart(averages, 0.5, jax.random.key(1))
    np.testing.assert_allclose(moved.codes, averages.codes, rtol=1e-5)
    np.testing.assert_allclose(moved.share, averages.share)


def test_with_all_but_one_dead_all_gather_round_it():
    share = jnp.asarray([1.0, 0.0, 0.0, 0.0])
    codes = jnp.asarray([[1.0, 1.0], [9.0, 9.0], [8.0, 8.0], [7.0, 7.0]])
    moved = restart(CodeAverages(share, codes * share[:, None]), 0.1, jax.random.key(2))
    np.testing.assert_allclose(moved.codes, np.ones((4, 2)), atol=0.1)
    assert len({tuple(code) for code in np.asarray(moved.codes).tolist()}) == 4


def test_a_share_is_split_among_all_that_take_of_it():
    """Where more codes are dead than alive, one gives to several: nothing is used more often than before."""
    share = jnp.array([0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    codes = jnp.arange(16.0).reshape(8, 2)
    moved = restart(CodeAverages(share, codes * share[:, None]), 0.1, jax.random.key(3))
    np.testing.assert_allclose(moved.share, np.full(8, 0.125), rtol=1e-6)
