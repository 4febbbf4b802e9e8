"""Likelihood: the exact denoisers of a Gaussian and of a mixture give the entropy that is known."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import compiled

from ldm_jax import rng
from ldm_jax.config import PredictionType, ScheduleConfig
from ldm_jax.diffusion.likelihood import VariationalBound, flow_likelihood, variational_bound
from ldm_jax.diffusion.prediction import target_for
from ldm_jax.diffusion.schedule import make_schedule, per_sample
from ldm_jax.errors import UserError

SCHEDULE = make_schedule(ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02))
NUM_SAMPLES, MANY, DIMS = 256, 3000, 4
KEYS = rng.sample_keys(rng.root_key(0), jnp.arange(MANY))


class Mixture:
    """Equal parts of normal distributions in [DIMS, 1], with their exact denoiser."""

    def __init__(self, means: list[float], std: float) -> None:
        self.means, self.std = np.array(means, np.float32), std

    def sample(self, count: int = NUM_SAMPLES) -> np.ndarray:
        numbers = np.random.default_rng(0)
        means = self.means[numbers.integers(len(self.means), size=(count, 1, 1))]
        return (means + self.std * numbers.normal(size=(count, DIMS, 1))).astype(np.float32)

    def bits(self, z: np.ndarray) -> np.ndarray:
        """-log2 p(z) / DIMS."""
        squares = ((z[..., 0][:, None] - self.means[:, None]) ** 2).sum(-1) / self.std**2
        log_p = np.logaddexp.reduce(-0.5 * squares - np.log(len(self.means)), axis=1)
        return -(log_p - DIMS * np.log(self.std * np.sqrt(2 * np.pi))) / (DIMS * np.log(2))

    def denoiser(self, kind: PredictionType) -> Callable:
        def denoise(zt: jax.Array, t: jax.Array) -> jax.Array:
            alpha, sigma = SCHEDULE.at(t)
            a, s = per_sample(alpha, zt)[..., None], per_sample(sigma, zt)[..., None]
            variance = (a * self.std) ** 2 + s**2
            away = zt[..., None] - a * self.means  # [b, dims, 1, parts]
            weights = jax.nn.softmax((-0.5 * away**2 / variance).sum((1, 2)), axis=-1)[:, None, None]
            x0 = (weights * (self.means + a * self.std**2 / variance * away)).sum(-1)
            epsilon = (zt - per_sample(alpha, zt) * x0) / per_sample(sigma, zt)
            return target_for(kind, x0, epsilon, alpha, sigma)

        return denoise


GAUSSIAN, MIXTURE = Mixture([0.5], 1.5), Mixture([-2.0, 0.0, 3.0], 0.7)


@pytest.mark.parametrize("data", [GAUSSIAN, pytest.param(MIXTURE, marks=pytest.mark.slow)], ids=["gaussian", "mixture"])
def test_the_bound_is_just_above_the_truth(data: Mixture):
    z0 = data.sample(MANY)  # a draw of z_t leaves the bound uncertain

    def bound_and_total(z: jax.Array) -> tuple[VariationalBound, jax.Array]:
        bound = variational_bound(SCHEDULE, "v", data.denoiser("v"), z, KEYS)
        return bound, bound.total

    bound, total = compiled(bound_and_total)(z0)
    truth = data.bits(z0).mean()
    assert bound.kl.shape == (SCHEDULE.num_train_timesteps - 1, MANY)
    assert total.mean() == pytest.approx(truth, rel=0.01)
    assert (bound.kl >= 0).all()
    assert (bound.prior >= 0).all()
    np.testing.assert_allclose(total, bound.prior + bound.kl.sum(0) + bound.decoder, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("data", "kind"), [(GAUSSIAN, "epsilon"), (MIXTURE, "x0")], ids=["gaussian", "mixture"])
def test_the_flow_with_the_exact_divergence_gives_every_sample_its_likelihood(data: Mixture, kind: PredictionType):
    z0 = data.sample()
    found = compiled(
        lambda z: flow_likelihood(
            SCHEDULE, kind, data.denoiser(kind), z, KEYS[:NUM_SAMPLES], num_steps=250, num_probes=None
        )
    )(z0)
    np.testing.assert_allclose(found.mean(), data.bits(z0).mean(), rtol=0.01)
    np.testing.assert_allclose(found, data.bits(z0), rtol=0.03, atol=0.03)


def test_random_signs_give_the_divergence_on_average():
    z0 = MIXTURE.sample()
    found = compiled(
        lambda z: flow_likelihood(
            SCHEDULE, "v", MIXTURE.denoiser("v"), z, KEYS[:NUM_SAMPLES], num_steps=100, num_probes=16
        )
    )(z0)
    np.testing.assert_allclose(found.mean(), MIXTURE.bits(z0).mean(), rtol=0.01)


def test_the_posteriors_own_variance_bounds_worse():
    z0, denoise_fn, keys = GAUSSIAN.sample(), GAUSSIAN.denoiser("v"), KEYS[:NUM_SAMPLES]
    small, large = (
        compiled(lambda z, v=v: variational_bound(SCHEDULE, "v", denoise_fn, z, keys, v).total)(z0).mean()
        for v in ("small", "large")
    )
    assert small > large + 0.1


def test_a_sample_is_as_likely_alone_as_among_others():
    z0 = MIXTURE.sample()[:3]

    def bound(z: jax.Array, keys: jax.Array) -> jax.Array:
        return variational_bound(SCHEDULE, "v", MIXTURE.denoiser("v"), z, keys).total

    together = jax.jit(bound)(jnp.asarray(z0), KEYS[:3])
    np.testing.assert_allclose(jax.jit(bound)(jnp.asarray(z0[1:2]), KEYS[1:2])[0], together[1], rtol=1e-4)


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match="num_steps=1 must be from 2 to the 1000 timesteps that have signal"):
        flow_likelihood(SCHEDULE, "v", MIXTURE.denoiser("v"), jnp.zeros((1, DIMS, 1)), KEYS[:1], num_steps=1)
