"""Samplers: the right distribution from an exact denoiser, PyTorch's trajectory, and noise that knows its sample."""

import functools
import typing
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_jax.config import SamplingConfig, ScheduleConfig, field_types
from ldm_jax.diffusion.guidance import guide, linear
from ldm_jax.diffusion.prediction import convert, to_x0
from ldm_jax.diffusion.process import posterior
from ldm_jax.diffusion.samplers import (
    SAMPLERS,
    initial_noise,
    make_sampler,
    sample,
    sample_trajectory,
    schedule_grid,
    spaced_times,
)
from ldm_jax.diffusion.samplers.ddim import ddim
from ldm_jax.diffusion.samplers.ddpm import ddpm
from ldm_jax.diffusion.samplers.estimate import Clipping
from ldm_jax.diffusion.schedule import make_schedule, per_sample
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.samplers import run_sampler_case

GOLDEN = Path(__file__).parent / "golden" / "samplers"
PLAIN = make_schedule(ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02))
ZERO = make_schedule(ScheduleConfig(kind="scaled_linear", zero_terminal_snr=True))
KEY = jax.random.key(7)
TIMES = spaced_times(1000, 10)


def grid(steps, schedule=ZERO, spacing="trailing"):
    return schedule_grid(schedule, spaced_times(1000, steps, spacing))


TEN, PLAIN_TEN = grid(10), grid(10, PLAIN)
MEAN, STD = 1.5, 0.5  # the Gaussian that exact denoisers are made for

run = jax.jit(sample, static_argnums=1)
run_trajectory = jax.jit(sample_trajectory, static_argnums=1)


@functools.cache  # equal denoisers are one object, so that tests of equal shapes share one compilation
def exact(prediction_type, zero_terminal_snr=True):
    """The optimal denoiser of data distributed as N(MEAN, STD^2): a linear function of z_t."""
    schedule = ZERO if zero_terminal_snr else PLAIN

    def denoise(zt, t):
        alpha, sigma = schedule.at(t)
        a, s = per_sample(alpha, zt), per_sample(sigma, zt)
        x0 = MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (zt - a * MEAN)
        return convert(x0, "x0", prediction_type, zt, alpha, sigma)

    return denoise


def noise_for(which, shape=(4, 4, 2)):
    return initial_noise(KEY, jnp.asarray(which), shape)


Z, INDEX = noise_for(range(2)), jnp.arange(2)


# --- the right distribution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "zero_terminal_snr", "prediction_type"),
    [
        (ddim, True, "v"),
        (ddim, False, "epsilon"),
        (partial(ddim, eta=0.5), True, "x0"),
        (partial(ddim, eta=1.0), True, "v"),
        (ddpm, True, "v"),
        (ddpm, False, "epsilon"),
    ],
)
def test_exact_denoiser_of_a_gaussian_gives_its_mean_and_variance(factory, zero_terminal_snr, prediction_type) -> None:
    schedule = ZERO if zero_terminal_snr else PLAIN
    sampler = factory(grid(1000, schedule), prediction_type)  # the variance's error is of order 1 / steps
    which = jnp.arange(120)
    z0 = sample(sampler, exact(prediction_type, zero_terminal_snr), noise_for(which, (8, 8, 2)), KEY, which)
    np.testing.assert_allclose(z0.mean(), MEAN, atol=0.02)  # PLAIN leaves some signal in its last z_t
    np.testing.assert_allclose(z0.std(), STD, rtol=0.025)


def test_ddim_is_a_solver_of_first_order() -> None:
    """With a linear denoiser the run is an affine map, so two inputs tell its whole error without any statistics."""
    errors = []
    for steps in (25, 50, 100, 200):
        sampler = ddim(grid(steps), "v")
        ends = sample(sampler, exact("v"), jnp.array([-1.0, 1.0])[:, None, None], KEY, INDEX)
        errors.append(abs(float(ends[1, 0, 0] - ends[0, 0, 0]) / 2 - STD))
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all((ratios > 1.6) & (ratios < 2.4)), errors


def test_every_step_of_ddpm_draws_from_the_posterior_with_fresh_noise() -> None:
    iterates = run_trajectory(ddpm(TEN, "v"), exact("v"), Z, KEY, INDEX)
    noises = []
    for i, (t, t_next) in enumerate(zip(*TIMES, strict=True)):
        t, t_next = jnp.full(2, t), jnp.full(2, t_next)
        x0 = to_x0("v", exact("v")(iterates[i], t), iterates[i], *ZERO.at(t))
        mean, variance = posterior(ZERO, x0, iterates[i], t, t_next)
        if i == 9:
            np.testing.assert_allclose(iterates[10], mean, atol=1e-5)  # the last step leads to clean data
        else:
            noises.append(np.ravel((iterates[i + 1] - mean) / jnp.sqrt(per_sample(variance, mean))))
    assert np.all(np.abs(np.corrcoef(noises) - np.eye(9)) < 0.5)
    np.testing.assert_allclose(np.std(noises), 1.0, atol=0.15)
    np.testing.assert_allclose(np.mean(noises), 0.0, atol=0.15)


@pytest.mark.parametrize("clipping", [Clipping(), Clipping("static")])
def test_ddim_with_eta_one_is_ddpm(clipping) -> None:
    samplers = ddim(TEN, "v", eta=1.0, clipping=clipping), ddpm(TEN, "v", clipping=clipping)
    np.testing.assert_allclose(samplers[0].rows.std, samplers[1].rows.std, atol=1e-7)
    first, second = (run_trajectory(s.replace(stochastic=False), exact("v"), Z, KEY, INDEX) for s in samplers)
    np.testing.assert_allclose(first, second, atol=2e-5)


@pytest.mark.parametrize("factory", [ddim, ddpm])
def test_the_prediction_type_does_not_change_the_result(factory) -> None:
    ends = []
    for kind in ("epsilon", "v", "x0"):
        sampler = factory(PLAIN_TEN, kind).replace(stochastic=False)  # the noise is no prediction's business
        ends.append(run(sampler, exact(kind, False), Z, KEY, INDEX))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)
    np.testing.assert_allclose(ends[2], ends[1], atol=1e-4)


@pytest.mark.parametrize("factory", [ddim, ddpm])
def test_a_single_step_gives_the_estimate_itself(factory) -> None:
    t = jnp.full(2, 999)
    expected = to_x0("v", exact("v")(Z, t), Z, *ZERO.at(t))
    sampler = factory(grid(1), "v").replace(stochastic=False)  # there is no noise to add
    np.testing.assert_allclose(run(sampler, exact("v"), Z, KEY, INDEX), expected, atol=1e-6)


@pytest.mark.parametrize("factory", [ddim, ddpm])
def test_clipping_bounds_the_result(factory) -> None:
    sampler = factory(TEN, "v", clipping=Clipping("static", 0.25)).replace(stochastic=False)
    assert float(jnp.abs(run(sampler, exact("v"), Z, KEY, INDEX)).max()) <= 0.25


# --- PyTorch's numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*_20.npz")), ids=lambda path: path.stem)
def test_the_trajectory_is_pytorchs(path: Path) -> None:
    for name, (ours, reference) in run_sampler_case(path).items():
        assert ours.shape == reference.shape
        np.testing.assert_allclose(ours, reference, atol=1e-6 * max(1.0, np.abs(reference).max()), err_msg=name)


# --- randomness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [ddim, ddpm])
def test_a_sample_is_the_same_in_any_batch(factory) -> None:
    sampler, few, all_eight = factory(TEN, "v"), jnp.array([5, 3]), jnp.arange(8)
    whole = run(sampler, exact("v"), noise_for(all_eight), KEY, all_eight)
    np.testing.assert_allclose(run(sampler, exact("v"), noise_for(few), KEY, few), whole[few], atol=1e-6)
    assert float(jnp.abs(whole[5] - whole[3]).max()) > 0.1


def test_another_key_draws_other_noise_from_the_same_start() -> None:
    first, second = (run(ddpm(TEN, "v"), exact("v"), Z, jax.random.key(s), INDEX) for s in (1, 2))
    assert float(jnp.abs(first - second).max()) > 0.1


def test_ddim_without_eta_draws_nothing() -> None:
    sampler = ddim(TEN, "v")
    assert not sampler.stochastic
    first = run(sampler, exact("v"), Z, KEY, INDEX)
    np.testing.assert_array_equal(first, run(sampler, exact("v"), Z, jax.random.key(99), INDEX + 5))


# --- one loop, one compilation ---------------------------------------------------------------------------------------


def test_another_scale_seed_or_eta_is_not_traced_again() -> None:
    @jax.jit
    @chex.assert_max_traces(n=1)
    def generate(sampler, scale, key, which):
        denoise = guide(exact("v"), lambda z, t: jnp.zeros_like(z), linear(scale))
        return sample(sampler, denoise, initial_noise(key, which, (4, 4, 2)), key, which)

    results = []
    for eta, scale, seed in [(0.3, 1.0, 0), (0.3, 7.5, 1), (0.9, 2.0, 2)]:
        sampler = make_sampler(SamplingConfig(num_sample_steps=5, eta=eta), ZERO, "v")
        results.append(generate(sampler, jnp.float32(scale), jax.random.key(seed), INDEX + seed))
    assert float(jnp.abs(results[0] - results[1]).max()) > 0.1


def test_the_denoiser_is_called_once_for_each_step_with_its_timesteps() -> None:
    seen = []
    sampler = ddim(grid(4), "v")

    def denoise(z, t):
        jax.debug.callback(seen.append, t, ordered=True)
        return z

    sample(sampler, denoise, jnp.zeros((3, 2, 2, 1)), KEY, jnp.arange(3))
    jax.effects_barrier()
    np.testing.assert_array_equal(seen, np.repeat([[999], [749], [499], [249]], 3, axis=1))
    np.testing.assert_array_equal(sampler.timesteps, [999, 749, 499, 249])
    assert sampler.num_steps == 4


def test_trajectory_starts_at_the_noise_and_ends_at_the_sample() -> None:
    sampler = ddpm(TEN, "v")
    iterates = run_trajectory(sampler, exact("v"), Z, KEY, INDEX)
    assert iterates.shape == (11, *Z.shape)
    np.testing.assert_array_equal(iterates[0], Z)
    np.testing.assert_allclose(iterates[-1], run(sampler, exact("v"), Z, KEY, INDEX), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 3, 3, 3, 1)])
def test_sequences_and_volumes_are_sampled_too(shape) -> None:
    assert run(ddim(TEN, "v"), exact("v"), jnp.ones(shape), KEY, INDEX).shape == shape


def test_a_bfloat16_denoiser_is_integrated_in_float32() -> None:
    z_init = jnp.zeros((2, 2, 2, 1), jnp.bfloat16)
    assert sample(ddim(TEN, "v"), lambda z, t: z.astype(jnp.bfloat16), z_init, KEY, INDEX).dtype == jnp.float32


def test_every_sampler_of_the_configuration_exists_and_no_other() -> None:
    names = typing.get_args(field_types(SamplingConfig)["sampler"])
    assert set(names) == {*SAMPLERS, "imported"}
    for name in SAMPLERS:
        schedule = PLAIN if name in ("plms", "pndm") else ZERO
        sampler = make_sampler(SamplingConfig(sampler=name, num_sample_steps=7, eta=0.5), schedule, "v")
        assert all(np.all(np.isfinite(np.asarray(column))) for column in sampler.rows)
        assert int(sampler.timesteps[0]) == 999  # zero terminal SNR must be sampled from its last timestep

    with pytest.raises(UserError, match="sampler=imported is the scheduler of a model of another system, which came w"):
        make_sampler(SamplingConfig(sampler="imported", num_sample_steps=7), ZERO, "v")


# --- timesteps -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.data(), st.sampled_from(["leading", "trailing", "linspace"]))
def test_timesteps_fall_strictly_within_the_schedule(total: int, data, spacing: str) -> None:
    steps = data.draw(st.integers(1, total))
    times = spaced_times(total, steps, spacing)
    assert len(times.t) == len(times.t_next) == steps
    assert np.all(np.diff(times.t) < 0)
    assert times.t[0] < total and times.t[-1] >= 0
    np.testing.assert_array_equal(times.t_next, [*times.t[1:], -1])
    if spacing == "trailing":
        assert times.t[0] == total - 1


@pytest.mark.parametrize(
    ("spacing", "offset", "expected"),
    [
        ("leading", 0, [750, 500, 250, 0]),
        ("leading", 1, [751, 501, 251, 1]),
        ("linspace", 0, [999, 666, 333, 0]),
        ("trailing", 0, [999, 749, 499, 249]),
    ],
)
def test_spacings(spacing: str, offset: int, expected: list[int]) -> None:
    np.testing.assert_array_equal(spaced_times(1000, 4, spacing, steps_offset=offset).t, expected)
    assert spaced_times(1000, 4, spacing, end_clean=False).t_next[-1] == 0


@settings(max_examples=50)
@given(st.integers(1, 1000), st.floats(0, 1), st.booleans())
def test_coefficients_are_finite_and_keep_the_noise_level(steps: int, eta: float, end_clean: bool) -> None:
    times = spaced_times(1000, steps, end_clean=end_clean)
    way = schedule_grid(ZERO, times)
    for sampler in (ddim(way, "v", eta=eta), ddpm(way, "v")):
        assert all(np.all(np.isfinite(np.asarray(column))) for column in sampler.rows)
    *_, alpha, direction, std = map(np.asarray, ddim(way, "v", eta=eta).rows)
    np.testing.assert_allclose(alpha**2 + direction**2 + std**2, 1.0, atol=1e-6)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_step_counts_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=f"num_sample_steps={steps} must lie between 1 and num_train_timesteps=1000"):
        spaced_times(1000, steps)


@pytest.mark.parametrize("offset", [1, -1])
def test_offsets_out_of_range_are_refused(offset: int) -> None:
    message = (
        rf"steps_offset={offset} with num_sample_steps=1000 leads to timesteps {offset} to {999 + offset}, outside "
        "0 to 999; use an offset between 0 and 0"
    )
    with pytest.raises(UserError, match=message):
        spaced_times(1000, 1000, "leading", steps_offset=offset)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match=rf"eta={eta} must lie between 0 \(deterministic\) and 1 \(ancestral\)"):
        ddim(grid(5), "v", eta=eta)


@pytest.mark.parametrize("factory", [ddim, ddpm])
def test_epsilon_without_signal_is_refused(factory) -> None:
    with pytest.raises(UserError, match="prediction_type=epsilon cannot be sampled from a timestep with zero SNR"):
        factory(grid(5), "epsilon")
    factory(grid(5, spacing="leading"), "epsilon")  # never visits the last timestep
