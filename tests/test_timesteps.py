"""Importance-sampled timesteps: unbiased, of less variance, and a history that is the same however a batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import compiled

from ldm_jax.config import DiffusionConfig, ScheduleConfig
from ldm_jax.diffusion.timesteps import HISTORY, LossHistory, Visits, draw_timesteps, visits_of

T = 12
CONFIG = DiffusionConfig(schedule=ScheduleConfig(num_train_timesteps=T), timesteps="importance")
LOSSES = np.float32(10.0 ** np.linspace(0, -3, T))


def full_history(losses: np.ndarray = LOSSES) -> LossHistory:
    """As after many steps with these losses."""
    return LossHistory(jnp.tile(jnp.square(losses)[:, None], HISTORY), jnp.full(T, HISTORY, jnp.int32))


def test_the_weighted_loss_is_the_uniform_one_on_average():
    p = np.asarray(full_history().probabilities())
    assert p.sum() == pytest.approx(1, abs=1e-6)
    assert (p > 0).all()
    np.testing.assert_allclose(p, 0.999 * LOSSES / LOSSES.sum() + 0.001 / T, rtol=1e-5)
    grid = (np.arange(200_000) + 0.5).astype(np.float32) / 200_000
    t, weight = compiled(draw_timesteps)(p, grid)
    np.testing.assert_allclose(np.bincount(t, minlength=T) / len(t), p, atol=2e-5)
    weighted = weight * LOSSES[t]
    assert weighted.mean() == pytest.approx(LOSSES.mean(), rel=1e-3)
    assert weighted.std() < 0.1 * LOSSES.std(), "p ~ L leaves next to no variance"


def test_timesteps_are_uniform_until_every_one_was_drawn_often_enough():
    history = full_history()._replace(drawn=jnp.full(T, HISTORY).at[3].set(HISTORY - 1))
    np.testing.assert_allclose(history.probabilities(), 1 / T, rtol=1e-6)
    np.testing.assert_allclose(LossHistory.empty(CONFIG).probabilities(), 1 / T, rtol=1e-6)
    np.testing.assert_allclose(full_history(np.zeros(T, np.float32)).probabilities(), 1 / T, rtol=1e-6)


def test_the_ends_of_the_numbers_are_timesteps():
    t, weight = compiled(draw_timesteps)(np.full(T, 1 / T, np.float32), np.float32([0, np.nextafter(1, 0)]))
    assert t.tolist() == [0, T - 1]
    np.testing.assert_allclose(weight, 1, rtol=1e-5)


def test_the_last_ten_visits_are_kept():
    update = jax.jit(lambda h, v: h.updated(v))
    history, kept = LossHistory.empty(CONFIG), {t: [] for t in range(T)}
    numbers = np.random.default_rng(0)
    for _ in range(25):
        t, losses = numbers.integers(0, T - 1, 8).astype(np.int32), numbers.uniform(size=8).astype(np.float32)
        history = update(history, visits_of(jnp.asarray(t), jnp.asarray(losses), T))
        for visited in np.unique(t):
            kept[int(visited)].append(np.mean(losses[t == visited] ** 2))
    assert history.drawn.tolist() == [len(kept[t]) for t in range(T)]
    assert int(history.drawn.max()) > HISTORY
    for t, values in kept.items():
        found = np.sort(np.asarray(history.squares[t]))[HISTORY - min(len(values), HISTORY) :]
        np.testing.assert_allclose(found, np.sort(values[-HISTORY:]), rtol=1e-5)


def test_a_batch_may_be_cut_into_micro_batches_in_any_order():
    t, losses = np.int32([1, 5, 1, 3]), np.float32([0.1, 0.2, 0.3, 0.4])
    whole = visits_of(jnp.asarray(t), jnp.asarray(losses), T)
    parts = [visits_of(jnp.asarray(t[i]), jnp.asarray(losses[i]), T) for i in ([3, 0], [2, 1])]
    mean = Visits(*(sum(x) / 2 for x in zip(*parts, strict=True)))
    one, other = (LossHistory.empty(CONFIG).updated(v) for v in (whole, mean))
    np.testing.assert_allclose(one.squares, other.squares, rtol=1e-6)
    np.testing.assert_array_equal(one.drawn, other.drawn)


def test_the_history_has_no_gradient():
    slope = jax.grad(lambda x: visits_of(jnp.zeros(2, jnp.int32), x, T).squares.sum())(jnp.ones(2))
    np.testing.assert_array_equal(slope, 0)
