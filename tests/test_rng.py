"""Random numbers by name, step and sample: never by what was drawn before, or with whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import rng

ROOT = rng.root_key(0)
NAMES = ["init", "noise", "timestep", "posterior", "condition_drop", "dropout", "initial_noise", "sampler_noise"]


def bits(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.ravel(jax.random.key_data(key)).tolist())


def test_names_steps_seeds_and_samples_give_different_keys() -> None:
    keys = [rng.named_key(rng.root_key(seed), name, step) for seed in (0, 1) for name in NAMES for step in (0, 1, 2)]
    keys += list(rng.sample_keys(rng.named_key(ROOT, "noise"), jnp.arange(20)))
    assert len(set(map(bits, keys))) == len(keys)


def test_a_key_is_a_function_of_its_arguments() -> None:
    assert bits(rng.named_key(rng.root_key(3), "noise", 7)) == bits(rng.named_key(rng.root_key(3), "noise", 7))
    assert bits(rng.named_key(ROOT, "noise")) == bits(rng.named_key(ROOT, "noise", 0))
    traced = jax.jit(lambda step: rng.named_key(ROOT, "noise", step))(jnp.int32(7))
    assert bits(traced) == bits(rng.named_key(ROOT, "noise", 7))


def test_keys_are_the_ones_of_earlier_versions() -> None:
    """A run begun today goes on tomorrow: the numbers below may only change with a note to users."""
    key = rng.named_key(ROOT, "noise", 3)
    assert bits(key) == (3612574431, 1129814164)
    draws = rng.normal(rng.sample_keys(key, jnp.array([5])), (3,))
    np.testing.assert_allclose(draws[0], [-1.3938355, -0.4598098, -0.9895688], rtol=1e-5)


def test_a_samples_noise_depends_on_its_index_only() -> None:
    index, order = jnp.array([3, 100, 2**31 - 1, 0, 7, 12]), np.array([5, 0, 3, 2, 4, 1])
    key = rng.named_key(ROOT, "noise")
    whole = rng.normal(rng.sample_keys(key, index), (2, 2))
    np.testing.assert_array_equal(rng.normal(rng.sample_keys(key, index[order]), (2, 2)), whole[order])


@pytest.mark.parametrize("draw", [lambda k: rng.normal(k, (4,)), rng.uniform, lambda k: rng.integers(k, 1000)])
def test_the_size_of_the_batch_does_not_matter(draw) -> None:
    key, index = rng.named_key(ROOT, "noise"), jnp.arange(6)
    whole = draw(rng.sample_keys(key, index))
    halves = [draw(rng.sample_keys(key, half)) for half in (index[:3], index[3:])]
    np.testing.assert_array_equal(jnp.concatenate(halves), whole)
    np.testing.assert_array_equal(draw(rng.sample_keys(key, index[4:5])), whole[4:5])


def test_draws_have_their_distributions() -> None:
    keys = rng.sample_keys(rng.named_key(ROOT, "noise"), jnp.arange(4000))
    normal, uniform, integers = rng.normal(keys, (5,)), rng.uniform(keys), rng.integers(keys, 10)
    assert (normal.shape, normal.dtype) == ((4000, 5), jnp.float32)
    np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=0.03)
    assert uniform.dtype == jnp.float32 and uniform.min() >= 0 and uniform.max() < 1
    np.testing.assert_allclose([uniform.mean(), uniform.std()], [0.5, 12**-0.5], atol=0.02)
    assert jnp.issubdtype(integers.dtype, jnp.integer)
    np.testing.assert_allclose(np.bincount(integers, minlength=10), 400, atol=80)
    correlations = np.corrcoef(normal.T) - np.eye(5)
    assert np.abs(correlations).max() < 0.06


def test_roots_of_samples_are_the_roots_of_their_seeds():
    seeds, index = jnp.array([0, 5, 2**31 - 1]), jnp.array([3, 0, 7])
    together = rng.sample_keys(rng.named_key(rng.root_keys(seeds), "noise", 2), index)
    for i, seed in enumerate(seeds.tolist()):
        alone = rng.sample_keys(rng.named_key(rng.root_key(seed), "noise", 2), index[i : i + 1])
        assert bits(together[i]) == bits(alone[0])
