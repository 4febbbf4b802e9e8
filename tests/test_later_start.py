"""Samplers that start later than at noise, with the exact denoiser of a Gaussian: image-to-image, holes, inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_samplers import INDEX, KEY, MEAN, PLAIN, STD, ZERO, exact
from test_solvers import FLOW

from ldm_jax.config import SamplingConfig
from ldm_jax.diffusion.inpainting import keep_known
from ldm_jax.diffusion.prediction import convert
from ldm_jax.diffusion.samplers import SAMPLERS, make_inversion, make_sampler, sample_from, sample_trajectory
from ldm_jax.diffusion.schedule import per_sample
from ldm_jax.errors import UserError

run_from = jax.jit(sample_from, static_argnums=1)
FEW = {"ddim": 120, "ddpm": 200, "euler": 120, "euler_ancestral": 200, "kdpm2_ancestral": 200, "dpmpp_2m_sde": 200}


def config_for(name: str, steps: int) -> SamplingConfig:
    spacing = "leading" if name in ("plms", "pndm") else "trailing"
    return SamplingConfig(sampler=name, num_sample_steps=steps, spacing=spacing, tolerance=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_goes_on_from_a_later_level_to_the_right_distribution(name: str) -> None:
    steps = FEW.get(name, 60)
    sampler = make_sampler(config_for(name, steps), ZERO, "v", skip=steps // 2)
    assert int(sampler.timesteps[0]) < 520, "half of the way is left"
    start = sampler.start
    np.testing.assert_allclose(start.alpha**2 + start.sigma**2, 1.0, atol=1e-6)
    spread = jnp.hypot(start.alpha * STD, start.sigma)
    if not sampler.stochastic:  # an affine map: two inputs tell all of it
        zt = start.alpha * MEAN + spread * jnp.array([-1.0, 1.0])[:, None, None]
        ends = np.ravel(run_from(sampler, exact_at_any_time, zt, KEY, INDEX))
        np.testing.assert_allclose(
            ends, [MEAN - STD, MEAN + STD], atol=0.02
        )  # the last step, to an estimate, narrows it
        return
    which = jnp.arange(60)
    zt = start.alpha * MEAN + spread * jax.random.normal(jax.random.key(3), (60, 12, 12))
    z0 = run_from(sampler, exact_at_any_time, zt, KEY, which)
    np.testing.assert_allclose([z0.mean(), z0.std()], [MEAN, STD], atol=0.025)


def exact_at_any_time(zt, t):
    """The denoiser of `exact("v")` at times between timesteps too."""
    at = jnp.arange(1000.0)
    alpha, sigma = (jnp.interp(t.astype(jnp.float32), at, x) for x in (ZERO.alpha, ZERO.sigma))
    a, s = per_sample(alpha, zt), per_sample(sigma, zt)
    x0 = MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (zt - a * MEAN)
    return convert(x0, "x0", "v", zt, alpha, sigma)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_known_part_comes_out_as_it_is_and_the_rest_as_without(name: str) -> None:
    """Through every solver, of a denoiser that works pixel by pixel, so that the rest cannot see the known part."""
    sampler = make_sampler(config_for(name, 12), ZERO, "v").replace(stochastic=False)
    z0 = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    hole = jnp.zeros((2, 4, 4, 1)).at[:, :, :2].set(1.0)
    noise = jax.random.normal(jax.random.key(2), z0.shape)
    known = keep_known(exact_at_any_time, z0, hole, ZERO, "v")
    zt = sampler.start.alpha * z0 * (1 - hole) + sampler.start.sigma * noise
    kept, free = (np.asarray(run_from(sampler, fn, zt, KEY, INDEX)) for fn in (known, exact_at_any_time))
    np.testing.assert_allclose(kept[:, :, 2:], z0[:, :, 2:], atol=5e-3 if name == "adaptive" else 2e-5)
    np.testing.assert_allclose(kept[:, :, :2], free[:, :, :2], atol=2e-3 if name == "adaptive" else 1e-5)
    assert np.abs(free[:, :, 2:] - np.asarray(z0[:, :, 2:])).max() > 0.5


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
def test_the_known_part_is_at_each_level_the_latent_noised_to_it(kind) -> None:
    schedule = PLAIN
    sampler = make_sampler(SamplingConfig(num_sample_steps=8), schedule, kind)
    z0, noise = (jax.random.normal(jax.random.key(i), (2, 3, 3, 2)) for i in (4, 5))
    start = sampler.start
    denoise = keep_known(exact(kind, False), z0, jnp.zeros((2, 3, 3, 1)), schedule, kind)
    iterates = sample_trajectory(sampler, denoise, start.alpha * z0 + start.sigma * noise, KEY, INDEX)
    for i, t in enumerate(np.asarray(sampler.timesteps)):
        alpha, sigma = schedule.at(jnp.asarray(t))
        np.testing.assert_allclose(iterates[i], alpha * z0 + sigma * noise, atol=3e-5)
    np.testing.assert_allclose(iterates[-1], z0, atol=3e-5)


def test_a_learned_variance_stays_the_denoisers() -> None:
    z0 = jnp.ones((1, 2, 2, 1))
    both = keep_known(lambda z, t: jnp.concatenate([z, 7 * z], -1), z0, jnp.zeros_like(z0), PLAIN, "x0")
    np.testing.assert_array_equal(both(3 * z0, jnp.array([5]))[0, 0, 0], [1.0, 21.0])


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc", "heun", "lms", "plms"])
def test_of_a_little_noise_nothing_but_the_latent_comes_back(name: str) -> None:
    sampler = make_sampler(config_for(name, 1000), PLAIN, "v", skip=998)
    z0 = MEAN + STD * jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    noise = jax.random.normal(jax.random.key(2), z0.shape)
    ends = run_from(sampler, exact("v", False), sampler.start.alpha * z0 + sampler.start.sigma * noise, KEY, INDEX)
    np.testing.assert_allclose(ends, z0, atol=0.06)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_inverted_and_drawn_it_comes_back_the_closer_the_more_steps(kind) -> None:
    schedule, errors = PLAIN, []
    z0 = MEAN + STD * jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    for steps in (25, 100, 400):
        config = SamplingConfig(num_sample_steps=steps)
        back, there = make_inversion(config, schedule, kind), make_sampler(config, schedule, kind)
        zt = run_from(back, exact(kind, False), z0, KEY, INDEX)
        errors.append(float(jnp.abs(run_from(there, exact(kind, False), zt, KEY, INDEX) - z0).max()))
    np.testing.assert_allclose(zt, (z0 - MEAN) / STD, atol=0.1)  # the noise of a Gaussian, up to what is left of z0
    assert errors[2] < 0.03 and errors[0] > 2 * errors[1] > 4 * errors[2], errors


def test_inversion_of_part_of_the_way_leads_to_where_the_sampler_starts() -> None:
    config = SamplingConfig(num_sample_steps=100)
    back, there = (make(config, FLOW, "flow", skip=40) for make in (make_inversion, make_sampler))
    z0 = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))

    def flow(zt, t):
        at = jnp.arange(1000.0)
        alpha, sigma = (jnp.interp(t.astype(jnp.float32), at, x) for x in (FLOW.alpha, FLOW.sigma))
        a, s = per_sample(alpha, zt), per_sample(sigma, zt)
        return convert(a / (a**2 + s**2) * zt, "x0", "flow", zt, alpha, sigma)

    zt = run_from(back, flow, z0, KEY, INDEX)
    np.testing.assert_allclose(float(zt.std() / z0.std()), jnp.hypot(there.start.alpha, there.start.sigma), rtol=0.03)
    np.testing.assert_allclose(run_from(there, flow, zt, KEY, INDEX), z0, atol=0.05)


def test_x0_is_not_inverted() -> None:
    with pytest.raises(UserError, match="prediction_type=x0 cannot be inverted"):
        make_inversion(SamplingConfig(), ZERO, "x0")


def test_a_churned_start_is_the_unchurned_level() -> None:
    plain, churned = (
        make_sampler(SamplingConfig(sampler="heun", churn=c, num_sample_steps=10), ZERO, "v", skip=5)
        for c in (0.0, 10.0)
    )
    np.testing.assert_array_equal(plain.start, churned.start)


def test_a_first_timestep_is_where_all_steps_begin() -> None:
    sampler = make_sampler(SamplingConfig(num_sample_steps=4), ZERO, "v", first=399)
    np.testing.assert_array_equal(sampler.timesteps, [399, 299, 199, 99])
    np.testing.assert_allclose(sampler.start.alpha, ZERO.alpha[399])
