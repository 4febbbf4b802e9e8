"""Solvers: their orders, the right distribution on either path, and noise levels where they belong."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ldm_jax.config import SamplingConfig, ScheduleConfig
from ldm_jax.diffusion.prediction import convert
from ldm_jax.diffusion.samplers import (
    SAMPLERS,
    initial_noise,
    inverse_grid,
    make_sampler,
    sample,
    sample_trajectory,
    schedule_grid,
    spaced_times,
)
from ldm_jax.diffusion.samplers.adaptive import adaptive
from ldm_jax.diffusion.samplers.ddim import ddim
from ldm_jax.diffusion.samplers.deis import deis, log_polynomial_weights
from ldm_jax.diffusion.samplers.dpm_singlestep import block_orders, dpm_solver_singlestep
from ldm_jax.diffusion.samplers.dpm_solver import dpm_solver
from ldm_jax.diffusion.samplers.estimate import Clipping, clip
from ldm_jax.diffusion.samplers.euler import euler
from ldm_jax.diffusion.samplers.grid import chain
from ldm_jax.diffusion.samplers.heun import Churn, heun
from ldm_jax.diffusion.samplers.kdpm2 import kdpm2
from ldm_jax.diffusion.samplers.lms import lms, polynomial_weights
from ldm_jax.diffusion.samplers.pndm import plms, plms_calls
from ldm_jax.diffusion.samplers.rk4 import rk4
from ldm_jax.diffusion.samplers.sigmas import respaced, spaced_sigmas
from ldm_jax.diffusion.samplers.unipc import unipc
from ldm_jax.diffusion.schedule import make_schedule, per_sample
from ldm_jax.errors import UserError

NAMES = tuple(SAMPLERS)
WITHOUT_ZERO_SNR = ("plms", "pndm")
ZERO = make_schedule(ScheduleConfig(kind="scaled_linear", zero_terminal_snr=True))
PLAIN = make_schedule(ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02))
FLOW = make_schedule(ScheduleConfig(kind="flow", shift=2.0))
KEY, INDEX = jax.random.key(3), jnp.arange(2)

run = jax.jit(sample, static_argnums=1)

# --- orders ----------------------------------------------------------------------------------------------------------

HIGH, LOW = 10.0, 0.1


def level_denoiser(z, s):
    """The exact epsilon of standard normal data, told the noise level s itself."""
    s = s[:, None]
    y = z * jnp.hypot(s, 1.0)
    return (y - y / (1 + s**2)) / s


def level_grid(steps: int, last_twice: bool, high: float = HIGH):
    """Noise levels from `high` to LOW; ending twice there, where a method's last step is Euler's."""
    s = np.exp(np.linspace(np.log(high), np.log(LOW), steps + 1))
    return (
        chain(s, np.append(s, LOW), "preserving", np.asarray)
        if last_twice
        else chain(s[:-1], s, "preserving", np.asarray)
    )


def error_of(factory, steps: int, scaled: bool, last_twice: bool, high: float = HIGH) -> float:
    grid = level_grid(steps, last_twice, high)
    z = float(run(factory(grid, "epsilon"), level_denoiser, jnp.ones((1, 1)), KEY, INDEX[:1])[0, 0])
    y = z if scaled else z / grid.alpha_next[-1]
    return abs(y * grid.alpha[0] - np.sqrt((1 + LOW**2) / (1 + high**2)))


ORDERS = {
    "euler": (euler, 1, True, False),
    "ddim": (ddim, 1, False, False),
    "heun": (heun, 2, True, True),
    "kdpm2": (kdpm2, 2, True, True),
    "rk4": (rk4, 4, True, True),
    "lms 2": (partial(lms, order=2), 2, True, False),
    "lms 4": (lms, 3, True, False),  # its first steps are of lower order
    "plms": (lambda grid, kind: plms(plms_calls(grid), kind), 2, False, False),
    "dpmsolver++ 1": (partial(dpm_solver, order=1, lower_order_final=False), 1, False, False),
    "dpmsolver++ 2": (partial(dpm_solver, order=2, lower_order_final=False), 2, False, False),
    "dpmsolver 2": (partial(dpm_solver, order=2, algorithm="dpmsolver", lower_order_final=False), 2, False, False),
    "heun 2": (partial(dpm_solver, order=2, solver_type="heun", lower_order_final=False), 2, False, False),
    "singlestep 2": (partial(dpm_solver_singlestep, order=2, lower_order_final=False), 2, False, False),
    "singlestep 3": (partial(dpm_solver_singlestep, order=3, lower_order_final=False), 3, False, False),
    "deis 2": (partial(deis, order=2, lower_order_final=False), 2, False, False),
    "unipc 1": (partial(unipc, order=1, lower_order_final=False), 2, False, False),  # the corrector adds an order
    "unipc 2": (partial(unipc, order=2, lower_order_final=False), 3, False, False),
    "unipc bh1": (partial(unipc, order=2, variant="bh1", lower_order_final=False), 3, False, False),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order_of_the_solver(name: str) -> None:
    factory, order, scaled, last_twice = ORDERS[name]
    with jax.enable_x64(True):
        coarse, fine = (error_of(factory, steps, scaled, last_twice) for steps in (24, 48))
    assert order - 0.25 < np.log2(coarse / fine) < order + 0.5


@pytest.mark.parametrize("factory", [dpm_solver, deis])
def test_a_third_order_history_is_better_than_a_second(factory) -> None:
    with jax.enable_x64(True):
        second, third = (error_of(partial(factory, order=k, lower_order_final=False), 24, False, False) for k in (2, 3))
    assert third < second / 2


@pytest.mark.parametrize(("factory", "least", "most"), [(deis, 3, 4.5), (unipc, 4, 4), (dpm_solver, 2, 2)])
def test_a_third_order_history_has_its_order_where_its_first_steps_do_not_matter(factory, least, most) -> None:
    """From so much noise that the way is straight at first, where steps are of lower order. UniPC's corrector adds one;
    DPM-Solver++'s published formula takes half of the second derivative, and stays at two."""
    factory = partial(factory, order=3, lower_order_final=False)
    with jax.enable_x64(True):
        coarse, fine = (error_of(factory, steps, False, False, 1000.0) for steps in (48, 96))
    assert least - 0.35 < np.log2(coarse / fine) < most + 0.35


def test_the_adaptive_solver_is_as_exact_as_its_tolerance() -> None:
    with jax.enable_x64(True):
        grid = level_grid(8, True)
        for tolerance in (1e-2, 1e-4):
            sampler = adaptive(grid, "epsilon", rtol=tolerance, atol=tolerance)
            end = float(run(sampler, level_denoiser, jnp.ones((1, 1)), KEY, INDEX[:1])[0, 0])
            exact = np.sqrt((1 + LOW**2) / (1 + HIGH**2)) / grid.alpha[0] / (1 + LOW**2)
            assert abs(end - exact) < 15 * tolerance


def test_polynomials_are_integrated_exactly() -> None:
    nodes = np.array([3.0, 4.0, 6.0, 9.0])
    weights = polynomial_weights(nodes, 3.0, 2.0)
    np.testing.assert_allclose(weights @ nodes**3, (2.0**4 - 3.0**4) / 4)
    logs = log_polynomial_weights(nodes[:3], 3.0, 0.0)
    np.testing.assert_allclose(logs @ np.log(nodes[:3]), -(3 * np.log(3.0) - 3))  # the integral of ln from 3 to 0


@pytest.mark.parametrize(
    ("steps", "orders"), [(6, [1, 2, 3, 1, 2, 1]), (7, [1, 2, 3] * 2 + [1]), (8, [1, 2, 3] * 2 + [1, 2])]
)
def test_singlestep_blocks_end_with_lower_orders(steps: int, orders: list[int]) -> None:
    assert block_orders(steps, 3, lower_order_final=True, ends_clean=False) == orders
    assert block_orders(steps, 3, lower_order_final=True, ends_clean=True) == [*orders[:-1], 1]


# --- the right distribution ------------------------------------------------------------------------------------------

CENTERS, SHARE, WIDTH = (-1.5, 1.0), 0.3, 0.3  # a mixture of two Gaussians, the first with a share of 0.3


@functools.cache
def mixture(schedule_name: str, prediction_type):
    """The optimal denoiser of the mixture, for any time between timesteps."""
    schedule = {"zero": ZERO, "flow": FLOW}[schedule_name]
    alphas, sigmas = schedule.alpha, schedule.sigma

    def denoise(zt, t):
        index = jnp.arange(len(alphas), dtype=jnp.float32)
        alpha, sigma = (jnp.interp(t.astype(jnp.float32), index, x) for x in (alphas, sigmas))
        a, s = per_sample(alpha, zt), per_sample(sigma, zt)
        variance = a**2 * WIDTH**2 + s**2
        logits = [
            jnp.log(p) - (zt - a * c) ** 2 / (2 * variance) for c, p in zip(CENTERS, (SHARE, 1 - SHARE), strict=True)
        ]
        means = [c + a * WIDTH**2 / variance * (zt - a * c) for c in CENTERS]
        weight = jax.nn.sigmoid(logits[0] - logits[1])
        return convert(weight * means[0] + (1 - weight) * means[1], "x0", prediction_type, zt, alpha, sigma)

    return denoise


def check_mixture(values: np.ndarray) -> None:
    first = values < -0.3
    np.testing.assert_allclose(first.mean(), SHARE, atol=0.04)
    for part, center in ((values[first], CENTERS[0]), (values[~first], CENTERS[1])):
        np.testing.assert_allclose(part.mean(), center, atol=0.06)
        np.testing.assert_allclose(part.std(), WIDTH, rtol=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_draws_from_a_mixture(name: str) -> None:
    steps, spacing = (
        120 if name in ("ddpm", "euler_ancestral") else 40,
        "leading" if name in WITHOUT_ZERO_SNR else "trailing",
    )
    config = SamplingConfig(sampler=name, num_sample_steps=steps, spacing=spacing)
    which = jnp.arange(100)
    noise = initial_noise(KEY, which, (30,))
    check_mixture(np.asarray(run(make_sampler(config, ZERO, "v"), mixture("zero", "v"), noise, KEY, which)))


@pytest.mark.parametrize(
    "name", ["ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "adaptive"]
)
def test_flow_matching_draws_from_a_mixture(name: str) -> None:
    config = SamplingConfig(sampler=name, num_sample_steps=80)
    which = jnp.arange(100)
    noise = initial_noise(KEY, which, (30,))
    check_mixture(np.asarray(run(make_sampler(config, FLOW, "flow"), mixture("flow", "flow"), noise, KEY, which)))


@pytest.mark.parametrize("churn", [Churn(20.0, s_min=0.05, s_max=50.0), Churn(20.0)])
def test_churn_keeps_the_distribution(churn: Churn) -> None:
    """Also where it is put on the first level of all, which has no signal."""
    which = jnp.arange(100)
    grid = respaced(schedule_grid(ZERO, spaced_times(1000, 60)), "karras")
    sampler = heun(grid, "v", churn=churn)
    assert sampler.stochastic
    check_mixture(np.asarray(run(sampler, mixture("zero", "v"), initial_noise(KEY, which, (30,)), KEY, which)))


def test_churn_on_a_schedule_that_ends_without_signal_is_finite() -> None:
    which = jnp.arange(8)
    sampler = make_sampler(SamplingConfig(sampler="heun", churn=40.0, num_sample_steps=20), ZERO, "v")
    drawn = run(sampler, mixture("zero", "v"), initial_noise(KEY, which, (30,)), KEY, which)
    assert np.isfinite(np.asarray(drawn)).all() and np.abs(drawn).max() < 10


# --- agreement -------------------------------------------------------------------------------------------------------


def test_euler_in_the_noise_level_is_ddim() -> None:
    grid, z = schedule_grid(PLAIN, spaced_times(1000, 9)), initial_noise(KEY, INDEX, (3, 2))
    first, second = (run(factory(grid, "epsilon"), _any, z, KEY, INDEX) for factory in (euler, ddim))
    np.testing.assert_allclose(first, second, atol=1e-4)


def _any(z, t):
    return jnp.sin(z) * jnp.cos(t / 300.0)[:, None, None]


def test_flow_eulers_step_follows_the_velocity() -> None:
    grid, z = schedule_grid(FLOW, spaced_times(1000, 5)), initial_noise(KEY, INDEX, (3, 2))
    iterates = jax.jit(sample_trajectory, static_argnums=1)(euler(grid, "flow"), _any, z, KEY, INDEX)
    for i in range(5):
        velocity = _any(iterates[i], jnp.full(2, grid.t[i]))
        step = (grid.sigma_next[i] - grid.sigma[i]) * velocity
        np.testing.assert_allclose(iterates[i + 1], iterates[i] + step, atol=1e-5)


def test_inversion_leads_back() -> None:
    grid, z0 = schedule_grid(PLAIN, spaced_times(1000, 500)), 0.5 * initial_noise(KEY, INDEX, (3, 2))
    noise = run(ddim(inverse_grid(grid), "epsilon"), _smooth, z0, KEY, INDEX)
    back = run(ddim(grid, "epsilon"), _smooth, noise, KEY, INDEX)
    np.testing.assert_allclose(back, z0, atol=0.02)
    assert float(jnp.abs(noise - z0).max()) > 0.1


def _smooth(z, t):
    return 0.5 * z * (t / 1000.0)[:, None, None]


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "euler_ancestral", "kdpm2_ancestral", "adaptive"])
def test_a_sample_is_the_same_in_any_batch(name: str) -> None:
    sampler = make_sampler(SamplingConfig(sampler=name, num_sample_steps=8), ZERO, "v")
    few, many = jnp.array([5, 3]), jnp.arange(8)
    denoise = mixture("zero", "v")
    whole = run(sampler, denoise, initial_noise(KEY, many, (4,)), KEY, many)
    np.testing.assert_allclose(run(sampler, denoise, initial_noise(KEY, few, (4,)), KEY, few), whole[few], atol=2e-3)


def test_samplers_with_other_numbers_share_one_program() -> None:
    @jax.jit
    @chex.assert_max_traces(n=1)
    def generate(sampler, key, which):
        return sample(sampler, _any, initial_noise(key, which, (3, 2)), key, which)

    grids = [respaced(schedule_grid(PLAIN, spaced_times(1000, 6)), kind) for kind in ("karras", "exponential", "beta")]
    ends = [generate(dpm_solver(grid, "epsilon"), jax.random.key(i), INDEX + i) for i, grid in enumerate(grids)]
    ends.append(generate(lms(grids[0], "v", order=2), KEY, INDEX))
    ends.append(generate(dpm_solver(grids[0], "epsilon", solver_type="heun"), KEY, INDEX))
    assert all(np.all(np.isfinite(end)) for end in ends)
    assert float(jnp.abs(ends[-1] - ends[-2]).max()) > 1e-3


# --- noise levels and bounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_noise_levels_fall_between_their_ends(spacing) -> None:
    s = spaced_sigmas(spacing, 14.6, 0.03, 11)
    assert np.all(np.diff(s) < 0)
    np.testing.assert_allclose(s[[0, -1]], [14.6, 0.03])


def test_spacings_are_the_published_ones() -> None:
    np.testing.assert_allclose(
        spaced_sigmas("karras", 80.0, 0.002, 3)[1], ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    )
    np.testing.assert_allclose(spaced_sigmas("exponential", 8.0, 0.5, 5), [8.0, 4.0, 2.0, 1.0, 0.5])
    quantiles = scipy.stats.beta.ppf(np.linspace(1, 0, 5), 0.6, 0.6)
    np.testing.assert_allclose(spaced_sigmas("beta", 2.0, 1.0, 5), 1.0 + quantiles)


@pytest.mark.parametrize("schedule", [ZERO, PLAIN, FLOW])
def test_respaced_grids_keep_their_ends(schedule) -> None:
    plain = schedule_grid(schedule, spaced_times(1000, 8))
    grid = respaced(plain, "karras")
    np.testing.assert_allclose(grid.t[[0, -1]], plain.t[[0, -1]], atol=1e-3)
    assert grid.sigma_next[-1] == 0.0 and grid.alpha_next[-1] == 1.0
    np.testing.assert_allclose(grid.time_of(grid.s), grid.t)
    assert np.all(np.diff(grid.t) < 0)


def test_dynamic_clipping_scales_by_a_percentile_of_each_sample() -> None:
    x0 = np.stack([np.linspace(-4, 4, 101), np.linspace(-0.5, 0.5, 101)])
    clipped = np.asarray(clip(Clipping("dynamic", 3.0, 0.5), jnp.asarray(x0, jnp.float32)))
    np.testing.assert_allclose(clipped[0], np.clip(x0[0] / 2.0, -1, 1), atol=1e-6)  # half of |x0| is below 2
    np.testing.assert_allclose(clipped[1], x0[1], atol=1e-6)  # never below 1
    wide = clip(Clipping("dynamic", 1.5, 1.0), jnp.asarray(x0, jnp.float32))
    np.testing.assert_allclose(wide[0], np.clip(x0[0], -1.5, 1.5) / 1.5, atol=1e-6)


@pytest.mark.parametrize("factory", [euler, dpm_solver, unipc, heun, deis])
def test_static_clipping_bounds_the_result(factory) -> None:
    grid, z = schedule_grid(PLAIN, spaced_times(1000, 6)), 5 * initial_noise(KEY, INDEX, (3, 2))
    end = run(factory(grid, "epsilon", clipping=Clipping("static", 0.25)), _any, z, KEY, INDEX)
    assert float(jnp.abs(end).max()) <= 0.25 + 1e-5


# --- refusals --------------------------------------------------------------------------------------------------------

GRID = schedule_grid(PLAIN, spaced_times(1000, 5))
STRAIGHT = schedule_grid(FLOW, spaced_times(1000, 5))
REFUSED = {
    "zero SNR": (
        lambda: make_sampler(SamplingConfig(sampler="plms"), ZERO, "v"),
        "sampler=pndm and plms combine epsilons of several timesteps, .* zero SNR; use spacing=leading",
    ),
    "order of dpm": (lambda: dpm_solver(GRID, "v", order=4), r"order=4 of dpmsolver\+\+ must lie between 1 and 3"),
    "order of deis": (lambda: deis(GRID, "v", order=0), "order=0 of deis must lie between 1 and 3"),
    "order of unipc": (lambda: unipc(GRID, "v", order=0), "order=0 of unipc must be at least 1"),
    "clean end": (
        lambda: dpm_solver(GRID, "v", algorithm="dpmsolver"),
        "algorithm dpmsolver cannot step to clean data",
    ),
    "clean end of unipc": (lambda: unipc(GRID, "v", predict_x0=False), "unipc with predict_x0=False .*clean data"),
    "singlestep sde": (
        lambda: dpm_solver_singlestep(level_grid(4, False), "v", algorithm="sde-dpmsolver"),
        r"no algorithm sde-dpmsolver; use sde-dpmsolver\+\+ or dpmsolver",
    ),
    "churn": (
        lambda: heun(STRAIGHT, "flow", churn=Churn(1.0)),
        "churn=1.0 must not be negative, and is 0 on the straight",
    ),
    "tolerance": (lambda: adaptive(GRID, "v", rtol=0.0), "rtol=0.0 and atol=0.001 must be greater than 0"),
    "clipping": (
        lambda: euler(GRID, "v", clipping=Clipping("static", 0.0)),
        "clipping range=0.0 must be greater than 0",
    ),
    "pndm": (
        lambda: make_sampler(SamplingConfig(sampler="pndm", num_sample_steps=3), PLAIN, "v"),
        "sampler=pndm needs at least 4 steps, not num_sample_steps=3; use plms",
    ),
    "plms": (
        lambda: make_sampler(SamplingConfig(sampler="plms", sigmas="karras"), PLAIN, "v"),
        "sampler=plms steps through training timesteps and does not clip; use sigmas=schedule, not karras",
    ),
    "ancestral flow": (
        lambda: make_sampler(SamplingConfig(sampler="kdpm2_ancestral"), FLOW, "flow"),
        "sampler=kdpm2_ancestral is not for the straight path of flow matching; use euler_ancestral",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_choices_that_a_solver_does_not_have_are_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        make()
