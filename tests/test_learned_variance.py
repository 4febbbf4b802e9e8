"""The variance that a denoiser learns: on a Gaussian the best one is known, and makes the bound tight."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import compiled

from ldm_jax import rng
from ldm_jax.config import DiffusionConfig, SamplingConfig, ScheduleConfig
from ldm_jax.diffusion.learned_variance import log_growth, variance_loss
from ldm_jax.diffusion.likelihood import variational_bound
from ldm_jax.diffusion.loss import diffusion_loss
from ldm_jax.diffusion.process import posterior_weights
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.samplers.sampler import sample
from ldm_jax.diffusion.schedule import make_schedule, per_sample
from ldm_jax.errors import UserError

CONFIG = ScheduleConfig(kind="linear", beta_start=1e-3, beta_end=0.3, num_train_timesteps=40)
SCHEDULE = make_schedule(CONFIG)
MEAN, STD, DIMS = 0.5, 0.6, 4
COUNT = 3000


def gaussian_denoiser(zt: jax.Array, t: jax.Array) -> jax.Array:
    """Epsilon of N(MEAN, STD^2), and the v with which a step has exactly the variance that it should."""
    alpha, sigma = SCHEDULE.at(t)
    total = (alpha * STD) ** 2 + sigma**2
    x0 = MEAN + per_sample(alpha * STD**2 / total, zt) * (zt - per_sample(alpha, zt) * MEAN)
    epsilon = (zt - per_sample(alpha, zt) * x0) / per_sample(sigma, zt)
    before = jnp.maximum(t, 1) - 1
    weight, _, small = posterior_weights(*SCHEDULE.at(before + 1), *SCHEDULE.at(before))
    uncertain = (sigma * STD) ** 2 / total
    growth = jnp.log1p(weight**2 * uncertain / small)
    v = growth / jnp.log(SCHEDULE.sigma[before + 1] / SCHEDULE.sigma[before]) - 1
    return jnp.concatenate([epsilon, jnp.broadcast_to(per_sample(v, zt), zt.shape)], axis=-1)


def data(count: int = COUNT) -> np.ndarray:
    return (MEAN + STD * np.random.default_rng(0).normal(size=(count, DIMS, 1))).astype(np.float32)


def test_the_bound_with_the_learned_variance_is_the_truth():
    z0, keys = data(), rng.sample_keys(rng.root_key(0), jnp.arange(COUNT))
    bound = {
        kind: compiled(lambda z, k=kind: variational_bound(SCHEDULE, "epsilon", gaussian_denoiser, z, keys, k).total)(
            z0
        )
        for kind in ("learned", "large", "small")
    }
    entropy = 0.5 * math.log2(2 * math.pi * math.e * STD**2)
    assert bound["learned"].mean() == pytest.approx(entropy, rel=0.01)
    assert bound["learned"].mean() < min(bound["large"].mean(), bound["small"].mean()) - 0.01


def test_the_loss_is_least_where_the_variance_is_the_right_one():
    z0, t = jnp.asarray(data()), jnp.full(COUNT, 3)
    epsilon = np.random.default_rng(1).normal(size=z0.shape).astype(np.float32)
    alpha, sigma = (float(x[3]) for x in (SCHEDULE.alpha, SCHEDULE.sigma))

    def loss(shift: jax.Array) -> jax.Array:
        out = gaussian_denoiser(alpha * z0 + sigma * epsilon, t)
        x0 = (alpha * z0 + sigma * epsilon - sigma * out[..., :1]) / alpha
        return variance_loss(SCHEDULE, t, z0, x0, out[..., 1:] + shift).mean()

    value, slope, curve = compiled(lambda s: (loss(s), jax.grad(loss)(s), jax.grad(jax.grad(loss))(s)))(np.float32(0))
    assert abs(slope) < 0.1 * curve
    assert value > 0


def test_the_mean_learns_from_the_simple_loss_alone():
    config = DiffusionConfig(schedule=CONFIG, variance="learned", vlb_weight=0.5)
    z0, t = jnp.asarray(data(8)), jnp.asarray([0, 1, 5, 9, 20, 30, 38, 39], jnp.int32)
    epsilon = rng.normal(rng.sample_keys(rng.root_key(0), jnp.arange(8)), z0.shape[1:])

    def total(shift: jax.Array, config: DiffusionConfig) -> jax.Array:
        def denoise_fn(zt: jax.Array, t: jax.Array) -> jax.Array:
            return gaussian_denoiser(zt, t) + shift

        return diffusion_loss(denoise_fn, SCHEDULE, config, z0, epsilon, t)

    def both(shift: jax.Array) -> tuple[jax.Array, ...]:
        simple = DiffusionConfig(schedule=CONFIG)
        gradients = (jax.grad(lambda s, c=c: total(s, c).sum())(shift) for c in (config, simple))
        return total(shift, config), total(shift, simple), *gradients

    hybrid, simple, slope, simple_slope = compiled(both)(np.float32([0.1, 0.2]))
    np.testing.assert_allclose(slope[0], simple_slope[0], rtol=1e-5)
    assert slope[1] != 0
    assert simple_slope[1] == 0
    assert hybrid[0] == pytest.approx(simple[0], rel=1e-5), "the step to clean data has no variance"
    assert (hybrid[1:] != simple[1:]).all()


def test_the_ends_of_the_range_are_the_two_variances_of_ddpm():
    sigma, before = jnp.float32(0.5), jnp.float32(0.25)
    low, high = (float(log_growth(jnp.full((1, 1, 1), v), sigma, before).squeeze()) for v in (-1.0, 1.0))
    assert low == 0
    assert high == pytest.approx(2 * math.log(2))


def test_few_ancestral_steps_have_the_spread_of_the_data():
    """With either of DDPM's variances they have not."""
    noise = np.random.default_rng(2).normal(size=(COUNT, DIMS, 1)).astype(np.float32)
    config = SamplingConfig(sampler="ddpm", num_sample_steps=40)

    def draw(z: jax.Array, *, learned: bool) -> jax.Array:
        sampler = make_sampler(config, SCHEDULE, "epsilon", learned_variance=learned)
        return sample(sampler, gaussian_denoiser, z, rng.root_key(0), jnp.arange(COUNT))

    drawn, small = (compiled(lambda z, k=k: draw(z, learned=k))(noise) for k in (True, False))
    assert drawn.shape == noise.shape
    assert drawn.mean() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std() == pytest.approx(STD, rel=0.02)
    assert abs(small.std() - STD) > 2 * abs(drawn.std() - STD)


def test_other_samplers_leave_the_variance_aside():
    noise = np.random.default_rng(2).normal(size=(COUNT, DIMS, 1)).astype(np.float32)
    sampler = make_sampler(
        SamplingConfig(sampler="ddim", num_sample_steps=40), SCHEDULE, "epsilon", learned_variance=True
    )
    drawn = compiled(lambda z: sample(sampler, gaussian_denoiser, z, rng.root_key(0), jnp.arange(COUNT)))(noise)
    assert drawn.shape == noise.shape
    assert drawn.std() == pytest.approx(STD, rel=0.1)


def test_a_bound_cannot_take_a_variance_that_is_not_there():
    def without(zt: jax.Array, t: jax.Array) -> jax.Array:
        return gaussian_denoiser(zt, t)[..., :1]

    keys = rng.sample_keys(rng.root_key(0), jnp.arange(1))
    with pytest.raises(UserError, match="variance=learned needs a denoiser that learns it"):
        variational_bound(SCHEDULE, "epsilon", without, jnp.zeros((1, DIMS, 1)), keys, "learned")
