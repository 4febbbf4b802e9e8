"""Guidance: its ends, its linearity, two calls against one, and closed forms where the data are Gaussian."""

import typing
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.config import PredictionType, ScheduleConfig
from ldm_jax.diffusion.guidance import (
    Guidance,
    between,
    guide,
    guide_batched,
    guide_by_classifier,
    levels_at,
    limited,
    linear,
    pair,
    rescaled,
    usual_rule,
)
from ldm_jax.diffusion.prediction import convert, to_epsilon, to_x0
from ldm_jax.diffusion.schedule import make_schedule, per_sample

rng = np.random.default_rng(0)
Z = jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32)
T = jnp.array([1, 20, 300])
CONTEXT = jnp.asarray(rng.normal(size=(3, 5, 2)), jnp.float32)
EMPTY = jnp.zeros((3, 5, 2))


def denoise(zt, t, context):
    """A toy denoiser in which every sample sees its own time and context."""
    return jnp.tanh(zt + context.mean(1)[:, None, None, :]) * (1.0 + t / 100.0)[:, None, None, None]


CONDITIONAL, UNCONDITIONAL = partial(denoise, context=CONTEXT), partial(denoise, context=EMPTY)
PAIRS = partial(denoise, context=pair(CONTEXT, EMPTY))


def test_scale_one_is_conditional_and_zero_unconditional_to_the_bit() -> None:
    np.testing.assert_array_equal(guide(CONDITIONAL, UNCONDITIONAL, linear(1.0))(Z, T), CONDITIONAL(Z, T))
    np.testing.assert_array_equal(guide(CONDITIONAL, UNCONDITIONAL, linear(0.0))(Z, T), UNCONDITIONAL(Z, T))


@pytest.mark.parametrize("scale", [0, 1.0, 7.5, jnp.float32(3.0), jnp.array([0.0, 1.0, 12.0])])
def test_one_batched_call_equals_two(scale) -> None:
    np.testing.assert_allclose(
        guide_batched(PAIRS, linear(scale))(Z, T), guide(CONDITIONAL, UNCONDITIONAL, linear(scale))(Z, T), atol=1e-6
    )


def test_guidance_is_stable_diffusions_formula() -> None:
    conditional, unconditional = CONDITIONAL(Z, T), UNCONDITIONAL(Z, T)
    expected = unconditional + 7.5 * (conditional - unconditional)
    np.testing.assert_allclose(guide(CONDITIONAL, UNCONDITIONAL, linear(7.5))(Z, T), expected, atol=1e-5)


def test_every_sample_may_have_its_own_scale() -> None:
    scales = jnp.array([0.0, 2.0, 9.0])
    together = guide(CONDITIONAL, UNCONDITIONAL, linear(scales))(Z, T)
    for i, scale in enumerate(scales):
        np.testing.assert_array_equal(together[i], guide(CONDITIONAL, UNCONDITIONAL, linear(scale))(Z, T)[i])


def test_pair_interleaves_trees() -> None:
    tree = pair({"a": jnp.array([1, 2]), "b": jnp.zeros((2, 3))}, {"a": jnp.array([-1, -2]), "b": jnp.ones((2, 3))})
    np.testing.assert_array_equal(tree["a"], [1, -1, 2, -2])
    np.testing.assert_array_equal(tree["b"][:, 0], [0, 1, 0, 1])


def test_half_precision_is_combined_in_float32() -> None:
    half = partial(guide, lambda z, t: CONDITIONAL(z, t).astype(jnp.bfloat16))
    assert half(lambda z, t: UNCONDITIONAL(z, t).astype(jnp.bfloat16), linear(7.5))(Z, T).dtype == jnp.float32


# --- rescaling, intervals --------------------------------------------------------------------------------------------

SCHEDULE = make_schedule(ScheduleConfig(kind="scaled_linear"))
AXES = (1, 2, 3)


def test_rescaling_brings_back_the_spread_of_the_conditional_prediction() -> None:
    conditional = CONDITIONAL(Z, T)
    strong = guide(CONDITIONAL, UNCONDITIONAL, linear(9.0))(Z, T)
    full = guide(CONDITIONAL, UNCONDITIONAL, rescaled(linear(9.0), 1.0))(Z, T)
    assert np.abs(strong.std(AXES) - conditional.std(AXES)).min() > 0.01
    np.testing.assert_allclose(full.std(AXES), conditional.std(AXES), rtol=1e-5)
    half = guide(CONDITIONAL, UNCONDITIONAL, rescaled(linear(9.0), 0.5))(Z, T)
    np.testing.assert_allclose(half, 0.5 * (strong + full), atol=1e-5)  # Lin et al. 2023, eq. 16


def test_rescaling_by_nothing_and_constant_predictions_change_nothing_to_the_bit() -> None:
    plain = guide(CONDITIONAL, UNCONDITIONAL, linear(3.0))(Z, T)
    np.testing.assert_array_equal(guide(CONDITIONAL, UNCONDITIONAL, rescaled(linear(3.0), 0.0))(Z, T), plain)
    flat = rescaled(linear(3.0), 1.0)(jnp.ones_like(Z), jnp.zeros_like(Z), T)
    np.testing.assert_array_equal(flat, jnp.full_like(Z, 3.0))


def test_outside_the_interval_the_prediction_is_the_conditional_one_to_the_bit() -> None:
    levels = SCHEDULE.sigma[T] / SCHEDULE.alpha[T]
    low, high = float(levels[0] + levels[1]) / 2, float(levels[1] + levels[2]) / 2
    inside = guide(CONDITIONAL, UNCONDITIONAL, limited(linear(5.0), between(SCHEDULE, low, high)))(Z, T)
    everywhere = guide(CONDITIONAL, UNCONDITIONAL, linear(5.0))(Z, T)
    np.testing.assert_array_equal(inside[::2], CONDITIONAL(Z, T)[::2])
    np.testing.assert_array_equal(inside[1], everywhere[1])


def test_an_interval_takes_its_upper_bound_and_leaves_its_lower_one() -> None:
    # a schedule of two levels whose numbers are exact in binary
    schedule = SCHEDULE._replace(alpha=jnp.array([1.0, 0.5, 0.0]), sigma=jnp.array([0.5, 0.5, 1.0]))
    applies = between(schedule, 0.5, 1.0)(jnp.array([0, 1, 2]))
    assert applies.tolist() == [False, True, False]
    assert between(schedule, 0.0, jnp.inf)(jnp.array([0, 1, 2])).all(), "also where nothing is left of the data"
    between_times = levels_at(schedule, jnp.array([0.5, 1.5, 2.0]))
    np.testing.assert_array_equal(jnp.stack(between_times), [[0.75, 0.25, 0.0], [0.5, 0.75, 1.0]])


def test_the_usual_rule_is_plain_guidance_unless_it_is_told_otherwise() -> None:
    rule = usual_rule(SCHEDULE, Guidance(jnp.array([0.0, 1.0, 4.0])))
    plain = linear(jnp.array([0.0, 1.0, 4.0]))
    np.testing.assert_array_equal(
        guide(CONDITIONAL, UNCONDITIONAL, rule)(Z, T), guide(CONDITIONAL, UNCONDITIONAL, plain)(Z, T)
    )


def test_other_numbers_do_not_compile_again() -> None:
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def denoise_with(guidance: Guidance, context: jax.Array) -> jax.Array:
        conditional = partial(denoise, context=context)
        return guide(conditional, UNCONDITIONAL, usual_rule(SCHEDULE, guidance))(Z, T)

    found = [
        denoise_with(Guidance(*(jnp.full(3, x) for x in numbers)), context)
        for numbers, context in [((5.0, 0.0, 0.0, jnp.inf), CONTEXT), ((2.0, 0.7, 0.1, 3.0), CONTEXT + 1.0)]
    ]
    assert np.abs(found[0] - found[1]).max() > 0.1


# --- Gaussians, whose exact denoisers are known ----------------------------------------------------------------------


def gaussian(mean: float, std: float, prediction_type: PredictionType, zt: jax.Array, t: jax.Array) -> jax.Array:
    """The exact denoiser of data distributed as N(mean, std^2)."""
    alpha, sigma = SCHEDULE.at(t)
    a, s = per_sample(alpha, zt), per_sample(sigma, zt)
    x0 = mean + a * std**2 / (a**2 * std**2 + s**2) * (zt - a * mean)
    return convert(x0, "x0", prediction_type, zt, alpha, sigma)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_between_gaussians_is_the_denoiser_of_their_product(
    scale: float, prediction_type: PredictionType
) -> None:
    # p1^scale p2^(1 - scale) of two Gaussians of one spread is a Gaussian around the extrapolated mean, at every t
    one, two = (partial(gaussian, mean, 0.5, prediction_type) for mean in (1.5, -0.5))
    expected = gaussian(scale * 1.5 + (1 - scale) * -0.5, 0.5, prediction_type, Z, T)
    np.testing.assert_allclose(guide(one, two, linear(scale))(Z, T), expected, rtol=1e-4, atol=1e-4)


def test_the_score_of_a_weaker_gaussian_is_led_away_from() -> None:
    # autoguidance: the product p_main^w p_weak^(1 - w) at noise level t has precision w / var_main + (1 - w) / var_weak
    main, weak, w = 0.5, 1.0, 1.5
    guided = guide(partial(gaussian, 0.0, main, "epsilon"), partial(gaussian, 0.0, weak, "epsilon"), linear(w))(Z, T)
    alpha, sigma = SCHEDULE.at(T)
    precision = sum(x / (jnp.square(alpha * std) + jnp.square(sigma)) for x, std in ((w, main), (1 - w, weak)))
    np.testing.assert_allclose(guided, per_sample(sigma * precision, Z) * Z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", typing.get_args(PredictionType))
def test_a_classifier_turns_the_denoiser_of_all_into_that_of_a_class(prediction_type: PredictionType) -> None:
    """Two classes, N(1, 0.5^2) and N(-1, 0.5^2), equally often: the exact classifier at t is a logistic function."""
    schedule = make_schedule(ScheduleConfig(kind="flow")) if prediction_type == "flow" else SCHEDULE

    def log_likelihood(mean: float, zt: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = (per_sample(x, zt) for x in schedule.at(t))
        return -jnp.square(zt - alpha * mean) / (2 * (jnp.square(alpha * 0.5) + jnp.square(sigma)))

    def log_all(zt: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.logaddexp(log_likelihood(1.0, zt, t), log_likelihood(-1.0, zt, t))

    def log_probability(zt: jax.Array, t: jax.Array) -> jax.Array:  # each number is data of its own
        return jnp.sum(log_likelihood(1.0, zt, t) - log_all(zt, t), axis=AXES)

    def denoiser(log_density: typing.Any) -> typing.Any:
        def denoise_fn(zt: jax.Array, t: jax.Array) -> jax.Array:
            alpha, sigma = schedule.at(t)
            score = jax.grad(lambda z: jnp.sum(log_density(z, t)))(zt)
            return convert(-per_sample(sigma, zt) * score, "epsilon", prediction_type, zt, alpha, sigma)

        return denoise_fn

    guided = guide_by_classifier(denoiser(log_all), log_probability, schedule, prediction_type, 1.0)(Z, T)
    np.testing.assert_allclose(guided, denoiser(partial(log_likelihood, 1.0))(Z, T), rtol=1e-4, atol=1e-4)


def test_a_classifier_shifts_both_ends_of_a_prediction_alike() -> None:
    def log_probability(zt: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sum(zt, axis=AXES) * (1.0 + t)

    guided = guide_by_classifier(CONDITIONAL, log_probability, SCHEDULE, "v", jnp.array([0.0, 1.0, 2.0]))(Z, T)
    np.testing.assert_array_equal(guided[0], CONDITIONAL(Z, T)[0])
    alpha, sigma = SCHEDULE.at(T)
    ends = [f("v", guided, Z, alpha, sigma) for f in (to_x0, to_epsilon)]
    again = per_sample(alpha, Z) * ends[0] + per_sample(sigma, Z) * ends[1]
    np.testing.assert_allclose(again, Z, atol=1e-4)


def test_a_classifier_says_nothing_of_data_of_which_nothing_is_left() -> None:
    schedule = make_schedule(ScheduleConfig(kind="scaled_linear", zero_terminal_snr=True))
    last = jnp.array([999, 999, 999])
    guided = guide_by_classifier(CONDITIONAL, lambda z, t: jnp.sum(z, axis=AXES), schedule, "v", 2.0)(Z, last)
    np.testing.assert_array_equal(guided, CONDITIONAL(Z, last))
