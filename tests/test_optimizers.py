"""The optimizer against AdamW written out by hand, and the course of the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.config import OptimizerConfig
from ldm_jax.training.optimizers import clip_by_norm, learning_rate_schedule, make_optimizer, round_by_chance

PEAK = 2e-3


def rate(config: OptimizerConfig, num_steps: int, step: int) -> float:
    return float(learning_rate_schedule(config, num_steps)(step))


def test_without_warmup_and_decay_it_is_constant():
    config = OptimizerConfig(learning_rate=PEAK)
    assert [rate(config, 100, step) for step in (0, 1, 50, 1000)] == pytest.approx([PEAK] * 4)


def test_the_warmup_is_a_line_whose_first_step_already_moves():
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=4)
    assert [rate(config, 100, step) for step in range(6)] == pytest.approx(
        [PEAK * x for x in (0.25, 0.5, 0.75, 1, 1, 1)]
    )


def test_a_warmup_of_one_step_is_none():
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=1)
    assert [rate(config, 100, step) for step in range(3)] == pytest.approx([PEAK] * 3)


@pytest.mark.parametrize(("decay", "half"), [("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)])
@pytest.mark.parametrize("warmup", [0, 20])
def test_the_decay_begins_after_the_warmup_and_ends_at_the_last_step(decay, half: float, warmup: int):
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=warmup, decay=decay, final_learning_rate_ratio=0.1)
    end = 0.1 if decay != "constant" else 1.0
    assert rate(config, 120, warmup) == pytest.approx(PEAK)
    assert rate(config, 120, (120 + warmup) // 2) == pytest.approx(half * PEAK, rel=1e-5)
    assert rate(config, 120, 120) == pytest.approx(end * PEAK, rel=1e-5)
    assert rate(config, 120, 500) == pytest.approx(end * PEAK, rel=1e-5)


@given(
    st.sampled_from(["constant", "cosine", "linear"]),
    st.integers(0, 50),
    st.integers(1, 60),
    st.floats(0.0, 1.0),
)
def test_the_rate_never_exceeds_its_peak_and_never_turns_round(decay, warmup: int, num_steps: int, ratio: float):
    config = OptimizerConfig(learning_rate=PEAK, warmup_steps=warmup, decay=decay, final_learning_rate_ratio=ratio)
    schedule = learning_rate_schedule(config, num_steps)
    rates = np.asarray([float(schedule(step)) for step in range(0, num_steps + 2)])
    assert (rates >= 0).all()
    assert (rates <= PEAK * (1 + 1e-6)).all()
    turn = min(warmup, len(rates))
    assert (np.diff(rates[:turn]) >= -1e-9).all()
    assert (np.diff(rates[turn:]) <= 1e-9).all()


def adamw_by_hand(params, gradients, config: OptimizerConfig, rates) -> list[np.ndarray]:
    """Loshchilov and Hutter 2017, algorithm 2, in float64, with clipping by the global norm before it."""
    params = [p.astype(np.float64) for p in params]
    first, second = ([np.zeros_like(p) for p in params] for _ in range(2))
    for step, (step_gradients, eta) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in step_gradients))
        limit = config.max_grad_norm
        shrink = 1.0 if limit is None or norm < limit else limit / norm
        for i, gradient in enumerate(step_gradients):
            g = gradient * shrink
            first[i] = config.beta1 * first[i] + (1 - config.beta1) * g
            second[i] = config.beta2 * second[i] + (1 - config.beta2) * g**2
            mean = first[i] / (1 - config.beta1**step)
            spread = np.sqrt(second[i] / (1 - config.beta2**step)) + config.epsilon
            params[i] = params[i] - eta * (mean / spread + config.weight_decay * params[i])
    return params


@pytest.mark.parametrize("max_grad_norm", [None, 1.0, 1e3])
def test_it_is_adamw(max_grad_norm: float | None):
    config = OptimizerConfig(
        learning_rate=0.05, warmup_steps=3, decay="cosine", weight_decay=0.1, max_grad_norm=max_grad_norm
    )
    numbers = np.random.default_rng(0)
    shapes = [(4, 3), (5,)]
    params = [numbers.normal(size=shape).astype(np.float32) for shape in shapes]
    gradients = [[5 * numbers.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(8)]
    optimizer = make_optimizer(config, num_steps=8)
    update = jax.jit(optimizer.update)
    trained = [jnp.asarray(p) for p in params]
    state = optimizer.init(trained)
    for step_gradients in gradients:
        updates, state = update([jnp.asarray(g) for g in step_gradients], state, trained)
        trained = optax.apply_updates(trained, updates)
    rates = [rate(config, 8, step) for step in range(8)]
    for one, other in zip(trained, adamw_by_hand(params, gradients, config, rates), strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=2e-5, atol=2e-6)


def test_moments_are_float32_for_every_parameter():
    optimizer = make_optimizer(OptimizerConfig(), num_steps=1)
    state = jax.eval_shape(optimizer.init, {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)})
    arrays = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert arrays == [jnp.float32] * 4


def test_moments_in_bfloat16_are_half_as_large_and_follow_those_in_float32():
    numbers = np.random.default_rng(0)
    params = {"w": jnp.zeros((64, 64))}
    gradients = [{"w": jnp.asarray(numbers.normal(size=(64, 64)), jnp.float32)} for _ in range(20)]
    moments = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(OptimizerConfig(moment_dtype=dtype, max_grad_norm=None), num_steps=20)
        update, state = jax.jit(optimizer.update), optimizer.init(params)
        for gradient in gradients:
            _, state = update(gradient, state, params)
        moments[dtype] = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert [leaf.dtype for leaf in moments[dtype]] == [jnp.dtype(dtype)] * 2
    for wide, narrow in zip(moments["float32"], moments["bfloat16"], strict=True):
        np.testing.assert_allclose(np.asarray(narrow, np.float32), wide, rtol=0.05, atol=0.01)
        assert float(jnp.mean(jnp.abs(narrow.astype(jnp.float32)))) == pytest.approx(
            float(jnp.mean(jnp.abs(wide))), rel=2e-3
        )


def test_rounding_by_chance_is_right_on_average_and_keeps_what_is_not_finite():
    x = jnp.full(20_000, 1.0 + 2**-9)  # a quarter of the way from 1 to its upper neighbour
    rounded = np.asarray(round_by_chance(x, jax.random.key(0)), np.float32)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert float(rounded.mean()) == pytest.approx(float(x[0]), abs=2e-4)
    special = np.asarray(round_by_chance(jnp.asarray([0.0, jnp.inf, -jnp.inf, jnp.nan]), jax.random.key(0)), np.float32)
    np.testing.assert_array_equal(special, [0.0, np.inf, -np.inf, np.nan])


def test_clipping_takes_the_norm_that_it_is_given():
    clip, gradients = clip_by_norm(1.0), {"w": jnp.asarray([3.0, 4.0])}
    for norm, expected in ((None, [0.6, 0.8]), (10.0, [0.3, 0.4]), (0.5, [3.0, 4.0])):
        given = {} if norm is None else {"grad_norm": jnp.float32(norm)}
        np.testing.assert_allclose(clip.update(gradients, clip.init(gradients), **given)[0]["w"], expected, rtol=1e-6)
