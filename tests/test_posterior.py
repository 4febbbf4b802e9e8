"""The Gaussian posterior: its divergence by numerical integration, its samples by their moments and their keys."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from module_trials import compiled, random_array

from ldm_jax import rng
from ldm_jax.autoencoder.posterior import DiagonalGaussian

KEYS = rng.sample_keys(rng.root_key(0), jnp.arange(3))
kl = compiled(lambda mean, logvar: DiagonalGaussian(mean, logvar).kl())
sample = compiled(lambda mean, logvar, keys: DiagonalGaussian(mean, logvar).sample(keys))


def integrated_kl(mean: float, logvar: float) -> float:
    """The integral of q log(q / p) over twelve standard deviations, by the trapezoidal rule."""
    std = np.exp(0.5 * logvar)
    z = np.linspace(mean - 12 * std, mean + 12 * std, 20001)
    log_q = -0.5 * ((z - mean) / std) ** 2 - np.log(std)
    log_p = -0.5 * z**2
    return np.trapezoid(np.exp(log_q) * (log_q - log_p), z) / np.sqrt(2 * np.pi)


@settings(max_examples=25)
@given(mean=st.floats(-3, 3), logvar=st.floats(-6, 3))
def test_the_divergence_is_the_integral(mean: float, logvar: float) -> None:
    divergence = kl(np.full((1, 1, 1), mean), np.full((1, 1, 1), logvar))
    np.testing.assert_allclose(divergence, [integrated_kl(mean, logvar)], rtol=1e-4, atol=1e-5)


def test_the_divergence_is_summed_over_each_latent() -> None:
    mean, logvar = random_array(2, 2, 2, 2), random_array(2, 2, 2, 2, seed=1)
    expected = [sum(map(integrated_kl, m.ravel(), v.ravel())) for m, v in zip(mean, logvar, strict=True)]
    np.testing.assert_allclose(kl(mean, logvar), expected, rtol=1e-4)


def test_the_standard_normal_has_no_divergence() -> None:
    zeros = np.zeros((2, 4, 4, 3))
    np.testing.assert_array_equal(kl(zeros, zeros), [0, 0])


def test_samples_have_the_posteriors_moments() -> None:
    mean, logvar = np.full((3, 100, 100, 1), 2.0), np.full((3, 100, 100, 1), -1.0)
    samples = sample(mean, logvar, KEYS)
    np.testing.assert_allclose(samples.mean(axis=(1, 2, 3)), 2.0, atol=0.02)
    np.testing.assert_allclose(samples.std(axis=(1, 2, 3)), np.exp(-0.5), atol=0.02)


def test_a_sample_depends_on_its_own_key_alone() -> None:
    mean, logvar = random_array(3, 4, 4, 2), random_array(3, 4, 4, 2, seed=1)
    alone = sample(mean[1:2], logvar[1:2], KEYS[1:2])
    np.testing.assert_array_equal(sample(mean, logvar, KEYS)[1:2], alone)


def test_a_posterior_without_spread_is_a_point() -> None:
    mean = random_array(3, 4, 4, 2)
    nowhere = np.full_like(mean, -np.inf)
    np.testing.assert_array_equal(sample(mean, nowhere, KEYS), mean)
    mode = compiled(lambda mean, logvar: DiagonalGaussian(mean, logvar).mode())
    np.testing.assert_array_equal(mode(mean, nowhere), mean)


@pytest.mark.parametrize("spatial", [(5,), (2, 3), (2, 3, 4)])
def test_moments_are_means_then_log_variances(spatial: tuple[int, ...]) -> None:
    mean, logvar = random_array(2, *spatial, 3), random_array(2, *spatial, 3, seed=1)
    moments = compiled(lambda mean, logvar: DiagonalGaussian(mean, logvar).moments)(mean, logvar)
    np.testing.assert_array_equal(moments, np.concatenate([mean, logvar], axis=-1))
    again = compiled(DiagonalGaussian.from_moments)(moments)
    np.testing.assert_array_equal(again.mean, mean)
    np.testing.assert_array_equal(again.logvar, logvar)
