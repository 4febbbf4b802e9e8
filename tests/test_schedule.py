"""Properties of every noise schedule, and the numbers of the well-known ones."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.config import ScheduleConfig
from ldm_jax.diffusion.schedule import CLEAN, NoiseSchedule, make_schedule, per_sample
from ldm_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "samplers"
KINDS = ("linear", "scaled_linear", "cosine", "sqrt", "sigmoid", "exponential")
EVERY = [
    ScheduleConfig(kind=kind, num_train_timesteps=count, zero_terminal_snr=zero)
    for kind, count, zero in itertools.product(KINDS, (2, 50, 1000), (False, True))
]

every_schedule = pytest.mark.parametrize(
    "config", EVERY, ids=lambda c: f"{c.kind}-{c.num_train_timesteps}-{'zero' if c.zero_terminal_snr else 'plain'}"
)


@every_schedule
def test_alpha_and_sigma_lie_on_the_unit_circle(config: ScheduleConfig) -> None:
    schedule = make_schedule(config)
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1.0, atol=2e-7)


@every_schedule
def test_snr_falls_strictly(config: ScheduleConfig) -> None:
    schedule = make_schedule(config)
    assert np.all(np.diff(np.asarray(schedule.log_snr)) < 0)
    assert np.all(np.diff(np.asarray(schedule.snr)) <= 0)  # the far end of `sqrt` is below float32


@every_schedule
def test_alpha_bar_is_the_product_of_one_minus_beta(config: ScheduleConfig) -> None:
    schedule = make_schedule(config)
    expected = np.cumprod(1.0 - np.asarray(schedule.beta, np.float64))
    np.testing.assert_allclose(schedule.alpha_bar, expected, rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(schedule.alpha_bar, schedule.alpha**2, rtol=1e-6, atol=1e-30)


@every_schedule
def test_everything_is_float32_and_finite(config: ScheduleConfig) -> None:
    schedule = make_schedule(config)
    assert schedule.num_train_timesteps == config.num_train_timesteps
    for array in schedule:
        assert array.shape == (config.num_train_timesteps,)
        assert array.dtype == jnp.float32
        assert np.all(np.isfinite(array))
    assert np.all((np.asarray(schedule.beta) > 0) & (np.asarray(schedule.beta) <= 1))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_is_exact_and_keeps_the_first_step(kind: str) -> None:
    plain = make_schedule(ScheduleConfig(kind=kind))
    rescaled = make_schedule(ScheduleConfig(kind=kind, zero_terminal_snr=True))
    assert rescaled.alpha[-1] == 0.0 and rescaled.sigma[-1] == 1.0 and rescaled.snr[-1] == 0.0
    assert rescaled.beta[-1] == 1.0
    assert rescaled.log_snr[-1] == -np.inf
    np.testing.assert_allclose(rescaled.alpha[0], plain.alpha[0], rtol=1e-7)


def test_zero_terminal_snr_follows_the_published_algorithm() -> None:
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - beta))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    expected = np.append(1 - root[0] ** 2, 1 - root[1:] ** 2 / root[:-1] ** 2)
    schedule = make_schedule(ScheduleConfig(kind="scaled_linear", zero_terminal_snr=True))
    np.testing.assert_allclose(schedule.beta, expected, rtol=1e-6)


def test_betas_are_the_published_ones() -> None:
    linear = make_schedule(ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02)).beta
    np.testing.assert_allclose(linear[jnp.array([0, 1, 999])], [1e-4, 1e-4 + 0.0199 / 999, 0.02], rtol=1e-6)
    root = make_schedule(ScheduleConfig(kind="sqrt", beta_start=1e-4, beta_end=0.02)).beta
    np.testing.assert_allclose(root[jnp.array([0, 999])], [0.01, 0.02**0.5], rtol=1e-6)
    cosine = make_schedule(ScheduleConfig(kind="cosine"))
    assert cosine.beta[-1] == np.float32(0.999)
    middle = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine.alpha_bar[499], middle, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_the_straight_path(shift: float) -> None:
    schedule = make_schedule(ScheduleConfig(kind="flow", num_train_timesteps=100, shift=shift))
    np.testing.assert_allclose(schedule.alpha + schedule.sigma, 1.0, atol=1e-7)
    u = np.arange(1, 101) / 100
    np.testing.assert_allclose(schedule.sigma, shift * u / (1 + (shift - 1) * u), rtol=1e-6)
    assert schedule.alpha[-1] == 0.0 and schedule.sigma[-1] == 1.0
    assert np.all(np.diff(np.asarray(schedule.sigma)) > 0)
    assert all(np.all(np.isfinite(array)) for array in schedule)


def test_sigmoid_and_exponential_are_what_they_are_called() -> None:
    sigmoid = make_schedule(ScheduleConfig(kind="sigmoid", beta_start=1e-4, beta_end=0.02)).beta
    np.testing.assert_allclose(sigmoid[0] + sigmoid[-1], 0.0201, rtol=1e-5)
    np.testing.assert_allclose(sigmoid[0], 1e-4 + 0.0199 / (1 + np.exp(6.0)), rtol=1e-5)
    exponential = make_schedule(ScheduleConfig(kind="exponential"))
    np.testing.assert_allclose(exponential.alpha_bar[jnp.array([499, 999])], np.exp([-6.0, -12.0]), rtol=1e-4)


def test_scaled_linear_is_stable_diffusions() -> None:
    golden = np.load(GOLDEN / "posterior.npz")
    schedule = make_schedule(ScheduleConfig(kind="scaled_linear"))
    np.testing.assert_allclose(schedule.alpha_bar, golden["alphas_cumprod"], rtol=2e-5)  # theirs is float32 throughout


def test_sigma_keeps_its_precision_where_there_is_little_noise() -> None:
    schedule = make_schedule(ScheduleConfig(kind="linear", beta_start=1e-7, beta_end=1e-3))
    np.testing.assert_allclose(schedule.sigma[0] ** 2, 1e-7, rtol=1e-6)


def test_timestep_minus_one_is_clean_data() -> None:
    schedule = make_schedule(ScheduleConfig(num_train_timesteps=10))
    alpha, sigma = schedule.at(jnp.array([CLEAN, 0, 9]))
    np.testing.assert_array_equal(alpha, [1.0, schedule.alpha[0], schedule.alpha[9]])
    np.testing.assert_array_equal(sigma, [0.0, schedule.sigma[0], schedule.sigma[9]])


def test_per_sample_broadcasts_one_number_and_one_for_each() -> None:
    z = jnp.ones((2, 3, 4, 5))
    assert per_sample(jnp.float32(2.0), z).shape == (1, 1, 1, 1)
    np.testing.assert_array_equal((per_sample(jnp.array([1.0, 2.0]), z) * z)[:, 0, 0, 0], [1.0, 2.0])


def test_schedule_goes_through_jax_transformations() -> None:
    schedule = make_schedule(ScheduleConfig(num_train_timesteps=10))
    abstract = jax.eval_shape(lambda s: s, schedule)
    assert isinstance(abstract, NoiseSchedule)
    assert abstract.beta.shape == (10,)


def test_a_schedule_that_loses_the_signal_is_refused() -> None:
    config = ScheduleConfig(kind="linear", beta_start=0.1, beta_end=0.5)
    message = (
        r"ScheduleConfig.kind=linear with num_train_timesteps=1000 and beta_end=0.5 leaves no signal from timestep "
        r"\d+ on \(alpha=.*\); lower beta_end or num_train_timesteps"
    )
    with pytest.raises(UserError, match=message):
        make_schedule(config)
