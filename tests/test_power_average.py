"""Power-function averages: their widths, their profiles, and any width made of two that were kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.training.power_average import gamma_of, inner_products, profile_weights, update_power_average

WIDTHS = (0.05, 0.1)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_the_exponents_are_those_of_the_paper(sigma_rel: float, gamma: float):
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.005)


@given(st.floats(0.01, 0.28))
def test_the_width_is_the_spread_of_the_profile(sigma_rel: float):
    gamma = gamma_of(sigma_rel)
    tau = (np.arange(200_000) + 0.5) / 200_000
    profile = tau**gamma / (tau**gamma).sum()
    mean = (profile * tau).sum()
    assert np.sqrt((profile * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-3)


def averages(trajectory: np.ndarray, widths: tuple[float, ...]) -> np.ndarray:
    """Every average after every step, [steps, widths, values]."""
    gammas = [gamma_of(width) for width in widths]

    def step(state: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, params = inputs
        moved = [
            update_power_average({"w": state[i]}, {"w": params}, number, gamma)["w"] for i, gamma in enumerate(gammas)
        ]
        return jnp.stack(moved), jnp.stack(moved)

    first = jnp.zeros((len(widths), trajectory.shape[1]))
    return np.asarray(jax.lax.scan(step, first, (jnp.arange(len(trajectory)), trajectory))[1])


def test_the_average_has_its_profile():
    values = np.arange(1.0, 201.0)[:, None].astype(np.float32)
    found, gamma = averages(values, (0.1,))[-1, 0, 0], gamma_of(0.1)
    tau = values[:, 0].astype(np.float64)
    weights = (tau ** (gamma + 1) - (tau - 1) ** (gamma + 1)) / 200 ** (gamma + 1)
    assert weights.sum() == pytest.approx(1)
    assert found == pytest.approx((weights * tau).sum(), rel=1e-5)


def test_late_in_a_long_run_it_still_moves():
    params, average = {"w": jnp.float32(1.0)}, {"w": jnp.float32(0.0)}
    moved = update_power_average(average, params, jnp.int32(2_000_000 - 1), gamma_of(0.05))
    assert float(moved["w"]) == pytest.approx((gamma_of(0.05) + 1) / 2e6, rel=1e-4)


def test_any_width_is_made_of_two():
    """On a random walk, against averages that were tracked with it."""
    trajectory = np.random.default_rng(0).normal(size=(2000, 40)).cumsum(0).astype(np.float32)
    others = (0.03, 0.07, 0.15, 0.2)
    tracked = averages(trajectory, WIDTHS + others)
    steps = np.arange(100, 2001, 100)
    gammas = np.tile([gamma_of(width) for width in WIDTHS], len(steps))
    for i, width in enumerate(others, start=len(WIDTHS)):
        for end in (1500, 2000):
            known = steps <= end
            ends = np.repeat(steps[known], len(WIDTHS)).astype(np.float64)
            weights, off = profile_weights(ends, gammas[: len(ends)], end, gamma_of(width))
            kept = tracked[steps[known] - 1, : len(WIDTHS)].reshape(len(ends), -1)
            wanted = tracked[end - 1, i]
            error = np.linalg.norm(weights @ kept - wanted) / np.linalg.norm(trajectory[:end].std(0))
            assert error < 0.01, (width, end)
            assert off < 0.05
            assert weights.sum() == pytest.approx(1, abs=0.01)


def test_what_was_kept_is_found_again():
    ends, gammas = np.float64([100, 100, 200, 200]), np.tile([gamma_of(width) for width in WIDTHS], 2)
    weights, off = profile_weights(ends, gammas, 200, gamma_of(0.1))
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-6)
    assert off < 1e-6


def test_profiles_far_from_those_kept_are_told_to_be_off():
    ends, gammas = np.float64([200, 200]), np.asarray([gamma_of(width) for width in WIDTHS])
    assert profile_weights(ends, gammas, 200, gamma_of(0.28))[1] > 0.1
    assert inner_products(ends, gammas, ends, gammas) == pytest.approx(inner_products(ends, gammas, ends, gammas).T)
