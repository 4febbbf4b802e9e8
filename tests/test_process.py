"""The forward process and its posterior: statistics, Bayes' rule, and PyTorch's numbers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_jax.config import ScheduleConfig
from ldm_jax.diffusion.process import add_noise, posterior
from ldm_jax.diffusion.schedule import make_schedule

GOLDEN = Path(__file__).parent / "golden" / "samplers"
SCHEDULE = make_schedule(ScheduleConfig(kind="scaled_linear"))
ZERO = make_schedule(ScheduleConfig(kind="cosine", zero_terminal_snr=True))


@pytest.mark.parametrize("t", [0, 300, 999])
def test_noised_data_has_the_mean_and_variance_of_the_process(t: int) -> None:
    z0 = jnp.full((4, 50, 50, 4), 3.0)
    epsilon = jnp.asarray(np.random.default_rng(1).normal(size=z0.shape), jnp.float32)
    zt = add_noise(SCHEDULE, z0, epsilon, jnp.full(4, t))
    np.testing.assert_allclose(zt.mean(), 3.0 * SCHEDULE.alpha[t], atol=4 * SCHEDULE.sigma[t] / 200)
    np.testing.assert_allclose(zt.std(), SCHEDULE.sigma[t], rtol=0.02)


def test_each_sample_is_noised_to_its_own_timestep() -> None:
    z0, epsilon = jnp.ones((3, 2, 2, 1)), jnp.zeros((3, 2, 2, 1))
    t = jnp.array([0, 10, 999])
    np.testing.assert_array_equal(add_noise(SCHEDULE, z0, epsilon, t)[:, 0, 0, 0], SCHEDULE.alpha[t])


def test_posterior_is_pytorchs() -> None:
    golden = np.load(GOLDEN / "posterior.npz")
    t = jnp.asarray(golden["timesteps"])
    z0, zt = (jnp.repeat(jnp.asarray(golden[name], jnp.float32), len(t), axis=0) for name in ("x0", "xt"))
    mean, variance = posterior(SCHEDULE, z0, zt, t, t - 1)
    np.testing.assert_allclose(mean, golden["mean"][:, 0], atol=1e-4)  # theirs has 1 - alpha_bar in float32
    np.testing.assert_allclose(variance, golden["variance"], rtol=2e-4)


@settings(max_examples=50)
@given(st.integers(0, 999), st.integers(1, 1000))
def test_posterior_is_bayes_rule(t: int, distance: int) -> None:
    """q(z_s | z_t, z_0) is proportional to q(z_t | z_s) q(z_s | z_0): a product of two Gaussians, here in float64."""
    s = max(t - distance, -1)
    alpha, sigma = (np.append(np.asarray(a, np.float64), last) for a, last in ((ZERO.alpha, 1.0), (ZERO.sigma, 0.0)))
    mean, variance = posterior(
        ZERO, jnp.full((1, 1, 1), 0.7), jnp.full((1, 1, 1), -1.3), jnp.array([t]), jnp.array([s])
    )
    ratio = alpha[t] / alpha[s]
    gained = sigma[t] ** 2 - ratio**2 * sigma[s] ** 2  # variance of q(z_t | z_s)
    expected_variance = sigma[s] ** 2 * gained / sigma[t] ** 2
    expected_mean = (ratio * sigma[s] ** 2 * -1.3 + alpha[s] * gained * 0.7) / sigma[t] ** 2
    np.testing.assert_allclose(mean.item(), expected_mean, atol=1e-5)
    np.testing.assert_allclose(variance.item(), expected_variance, atol=1e-6)


def test_posterior_of_the_last_step_is_the_clean_latent() -> None:
    z0, zt = jnp.full((2, 2, 1), 0.5), jnp.full((2, 2, 1), 9.0)
    mean, variance = posterior(SCHEDULE, z0, zt, jnp.array([0, 700]), jnp.array([-1, -1]))
    np.testing.assert_array_equal(mean, z0)
    np.testing.assert_array_equal(variance, [0.0, 0.0])


def test_posterior_from_pure_noise_forgets_z_t() -> None:
    z0, zt = jnp.full((1, 2, 1), 0.5), jnp.full((1, 2, 1), 9.0)
    mean, variance = posterior(ZERO, z0, zt, jnp.array([999]), jnp.array([400]))
    np.testing.assert_allclose(mean, ZERO.alpha[400] * z0)
    np.testing.assert_allclose(variance, ZERO.sigma[400:401] ** 2, rtol=1e-6)
