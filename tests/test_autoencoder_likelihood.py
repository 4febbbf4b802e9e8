"""The decoder's likelihood: pixels have probabilities, and with the posterior's entropy they bound the truth."""

import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import compiled
from scipy.stats import norm

from ldm_jax.autoencoder.likelihood import ErrorKind, fitted_scale, mean_error, picture_log_likelihood
from ldm_jax.autoencoder.posterior import DiagonalGaussian

VALUES = (np.arange(256) / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_values_of_a_pixel_have_probabilities_that_sum_to_one(kind: ErrorKind):
    centres = np.float32([-1.5, -1, -0.3, 0, 0.5, 1, 1.2])
    pictures = np.broadcast_to(VALUES[:, None, None, None], (256, 1, 1, len(centres)))

    def each(picture: jnp.ndarray, scale: float) -> jnp.ndarray:
        one = picture.reshape(-1, 1, 1, 1)
        return picture_log_likelihood(kind, one, jnp.tile(centres, 256).reshape(one.shape), scale).reshape(256, -1)

    measure = compiled(each)
    for scale in (0.002, 0.05, 0.7):
        np.testing.assert_allclose(np.exp(measure(pictures, np.float32(scale))).sum(0), 1, atol=2e-4)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_what_is_far_off_is_unlikely_and_never_infinite(kind: ErrorKind):
    near, far = compiled(lambda x, d: picture_log_likelihood(kind, x, d, 0.01))(
        np.full((2, 1, 1, 1), VALUES[10]), np.float32([VALUES[10], 1.0]).reshape(2, 1, 1, 1)
    )
    assert 0 > near > -5
    assert -1e5 < far < -50


def test_the_bound_of_a_linear_model_is_its_likelihood():
    """x = z + noise, where the posterior is known and the bound is tight."""
    prior, spread, numbers = 0.3, 0.1, np.random.default_rng(0)
    z = prior * numbers.normal(size=(20_000, 2, 1))
    x = VALUES[np.rint(127.5 * (z + spread * numbers.normal(size=z.shape)) + 127.5).clip(0, 255).astype(int)]
    total = prior**2 + spread**2
    mean, variance = x * prior**2 / total, prior**2 * spread**2 / total
    drawn = (mean + np.sqrt(variance) * numbers.normal(size=x.shape)).astype(np.float32)

    def parts(x: jnp.ndarray, drawn: jnp.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
        posterior = DiagonalGaussian(jnp.asarray(mean), jnp.full(x.shape, np.log(variance)))
        return -picture_log_likelihood("l2", x, drawn, spread), posterior.entropy()

    reconstruction, entropy = compiled(parts)(x, drawn)
    bound = (reconstruction - entropy - norm.logpdf(drawn, scale=prior).sum((1, 2))).mean()
    edges = norm.cdf((x[..., None] + np.float64([-1, 1]) / 255) / np.sqrt(total))
    assert bound == pytest.approx(-np.log(edges[..., 1] - edges[..., 0]).sum((1, 2)).mean(), rel=0.01)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_fitted_scale_makes_the_pictures_most_likely(kind: ErrorKind):
    numbers = np.random.default_rng(0)
    noise = numbers.laplace(size=(400, 4, 1)) if kind == "l1" else numbers.normal(size=(400, 4, 1))
    x = VALUES[np.rint(127.5 + 12 * noise).clip(0, 255).astype(int)]
    errors = np.asarray(mean_error(kind, jnp.asarray(x), jnp.zeros(x.shape)))
    scale = fitted_scale(kind, errors)
    assert scale == pytest.approx(12 / 127.5, rel=0.05)
    measure = compiled(lambda x, s: picture_log_likelihood(kind, x, jnp.zeros(x.shape), s).sum())
    likely = [float(measure(x, np.float32(scale * factor))) for factor in (0.9, 1, 1.1)]
    assert max(likely) == likely[1]
    assert fitted_scale(kind, np.zeros(3)) > 0
