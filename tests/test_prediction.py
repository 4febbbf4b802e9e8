"""Prediction types: what they are, and that turning one into another and back changes nothing."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_jax.config import ScheduleConfig
from ldm_jax.diffusion.prediction import convert, target_for, to_epsilon, to_x0
from ldm_jax.diffusion.process import add_noise
from ldm_jax.diffusion.schedule import make_schedule

TYPES = ("epsilon", "v", "x0", "flow")
LAST = 999
PLAIN = make_schedule(ScheduleConfig(kind="scaled_linear"))
ZERO = make_schedule(ScheduleConfig(kind="scaled_linear", zero_terminal_snr=True))

rng = np.random.default_rng(0)
Z0 = jnp.asarray(rng.normal(size=(2, 3, 3, 4)), jnp.float32)
EPSILON = jnp.asarray(rng.normal(size=(2, 3, 3, 4)), jnp.float32)


def at(schedule, t):
    """z_t, alpha and sigma with every sample at timestep t."""
    index = jnp.array([t, t])
    return add_noise(schedule, Z0, EPSILON, index), *schedule.at(index)


@settings(max_examples=50)
@given(st.sampled_from(TYPES), st.integers(0, LAST))
def test_a_perfect_prediction_gives_back_data_and_noise(kind: str, t: int) -> None:
    zt, alpha, sigma = at(PLAIN, t)
    prediction = target_for(kind, Z0, EPSILON, alpha, sigma)
    np.testing.assert_allclose(to_x0(kind, prediction, zt, alpha, sigma), Z0, atol=3e-5)
    np.testing.assert_allclose(to_epsilon(kind, prediction, zt, alpha, sigma), EPSILON, atol=3e-5)


@settings(max_examples=50)
@given(st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, LAST))
def test_conversion_there_and_back_is_the_identity(source: str, target: str, t: int) -> None:
    zt, alpha, sigma = at(PLAIN, t)
    prediction = jnp.flip(EPSILON, 1)  # any prediction, not only a perfect one
    there = convert(prediction, source, target, zt, alpha, sigma)
    back = convert(there, target, source, zt, alpha, sigma)
    np.testing.assert_allclose(back, prediction, atol=2e-4)


@settings(max_examples=50)
@given(st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, LAST))
def test_conversion_of_a_perfect_prediction_is_perfect(source: str, target: str, t: int) -> None:
    zt, alpha, sigma = at(PLAIN, t)
    converted = convert(target_for(source, Z0, EPSILON, alpha, sigma), source, target, zt, alpha, sigma)
    np.testing.assert_allclose(converted, target_for(target, Z0, EPSILON, alpha, sigma), atol=5e-5)


@pytest.mark.parametrize(("source", "target"), [*itertools.product(("v", "x0"), repeat=2)])
def test_v_and_x0_are_exact_without_signal(source: str, target: str) -> None:
    zt, alpha, sigma = at(ZERO, LAST)
    assert np.all(np.asarray(alpha) == 0)
    converted = convert(target_for(source, Z0, EPSILON, alpha, sigma), source, target, zt, alpha, sigma)
    np.testing.assert_array_equal(converted, target_for(target, Z0, EPSILON, alpha, sigma))


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_data_and_noise_are_exact_without_signal(kind: str) -> None:
    zt, alpha, sigma = at(ZERO, LAST)
    prediction = target_for(kind, Z0, EPSILON, alpha, sigma)
    np.testing.assert_array_equal(to_x0(kind, prediction, zt, alpha, sigma), Z0)
    np.testing.assert_array_equal(to_epsilon(kind, prediction, zt, alpha, sigma), EPSILON)


def test_targets_are_what_they_are_called() -> None:
    alpha, sigma = jnp.float32(0.8), jnp.float32(0.6)
    np.testing.assert_array_equal(target_for("epsilon", Z0, EPSILON, alpha, sigma), EPSILON)
    np.testing.assert_array_equal(target_for("x0", Z0, EPSILON, alpha, sigma), Z0)
    np.testing.assert_allclose(target_for("v", Z0, EPSILON, alpha, sigma), 0.8 * EPSILON - 0.6 * Z0, atol=1e-6)
    np.testing.assert_array_equal(target_for("flow", Z0, EPSILON, alpha, sigma), EPSILON - Z0)


@pytest.mark.parametrize(("source", "target"), [*itertools.product(("flow", "x0", "epsilon"), repeat=2)])
def test_conversion_on_the_straight_path(source: str, target: str) -> None:
    zt, alpha, sigma = at(make_schedule(ScheduleConfig(kind="flow")), 600)
    converted = convert(target_for(source, Z0, EPSILON, alpha, sigma), source, target, zt, alpha, sigma)
    np.testing.assert_allclose(converted, target_for(target, Z0, EPSILON, alpha, sigma), atol=2e-5)


def test_scalar_and_per_sample_noise_levels_agree() -> None:
    zt, alpha, sigma = at(PLAIN, 500)
    np.testing.assert_array_equal(to_x0("v", EPSILON, zt, alpha[0], sigma[0]), to_x0("v", EPSILON, zt, alpha, sigma))
