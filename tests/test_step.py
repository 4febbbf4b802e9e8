"""One optimizer step, on a model of a few numbers: accumulation, averages, metrics, donation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax import rng
from ldm_jax.config import OptimizerConfig, TrainingConfig
from ldm_jax.training.optimizers import make_optimizer
from ldm_jax.training.state import TrainState, update_average
from ldm_jax.training.step import accumulate_gradients, make_step

CONFIG = TrainingConfig(batch_size=8, ema_decay=0.9)
ROOT = rng.root_key(0)


def loss_fn(params, frozen, batch, root, step):
    """Least squares; `frozen` scales, and the step shifts the target."""
    del root
    prediction = batch["x"] @ params["layer"]["w"] + params["layer"]["b"]
    error = prediction - frozen["scale"] * batch["y"] - step
    return jnp.mean(jnp.square(error)), {"error": jnp.mean(jnp.abs(error))}


def make_batch(size: int = 8, seed: int = 0) -> dict[str, jax.Array]:
    numbers = np.random.default_rng(seed)
    x, y = numbers.normal(size=(size, 3)), numbers.normal(size=size)
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}


def make_state(optimizer: optax.GradientTransformation) -> TrainState:
    params = {"layer": {"b": jnp.float32(0.5), "w": jnp.asarray([1.0, -1.0, 2.0])}}
    return TrainState.create(params, {"scale": jnp.float32(2.0)}, optimizer)


def one_step(accumulation: int = 1) -> tuple[TrainState, dict[str, jax.Array]]:
    optimizer = optax.sgd(0.1)
    step = make_step(loss_fn, optimizer, dataclasses.replace(CONFIG, gradient_accumulation=accumulation))
    return jax.jit(step)(make_state(optimizer), make_batch(), ROOT)


def test_it_follows_the_gradient_of_the_loss():
    before, batch = make_state(optax.sgd(0.1)), make_batch()
    after, metrics = one_step()
    (loss, extra), gradients = jax.value_and_grad(loss_fn, has_aux=True)(before.params, before.frozen, batch, ROOT, 0)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.params, expected)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics["error"]) == pytest.approx(float(extra["error"]), rel=1e-6)
    assert int(after.step) == 1


def test_the_loss_measures_with_constants_and_the_step_hands_them_on():
    optimizer = optax.sgd(0.1)
    state = make_state(optimizer)
    apart = state._replace(frozen={}, constants=state.frozen)
    (one, _), (other, _) = (
        jax.jit(make_step(loss_fn, optimizer, CONFIG))(s, make_batch(), ROOT) for s in (state, apart)
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert (other.frozen, other.constants) == ({}, state.frozen)
    assert set(other.model_params) == {"layer"}


def test_the_loss_sees_the_number_of_steps_done():
    optimizer = optax.sgd(0.0)
    step = jax.jit(make_step(loss_fn, optimizer, CONFIG))
    state, first = step(make_state(optimizer), make_batch(), ROOT)
    _, second = step(state, make_batch(), ROOT)
    expected = loss_fn(state.params, state.frozen, make_batch(), ROOT, 1)[0]
    assert float(second["loss"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(first["loss"]) != float(second["loss"])


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_add_up_to_the_batch(parts: int):
    whole, whole_metrics = one_step()
    parted, parted_metrics = one_step(parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parted, whole)
    assert set(parted_metrics) == set(whole_metrics)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parted_metrics[name], value, rtol=1e-5, atol=1e-6)


def test_a_micro_batch_takes_every_nth_sample():
    """So each device, which holds neighbouring samples, has its share of every micro-batch."""
    batch = {"x": jnp.arange(6.0)}
    seen = []

    def loss_of(params, micro):
        jax.debug.callback(lambda x: seen.append(x.tolist()), micro["x"], ordered=True)
        return params["w"] * jnp.sum(micro["x"]), {}

    gradient, _ = accumulate_gradients(loss_of, {"w": jnp.float32(1.0)}, batch, 2)
    jax.effects_barrier()
    assert seen == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    assert float(gradient["w"]) == 7.5


def test_the_average_moves_towards_the_new_parameters():
    before = make_state(optax.sgd(0.1))
    after, _ = one_step()
    expected = update_average(before.ema_params, after.params, jnp.int32(0), CONFIG.ema_decay)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.ema_params, expected)


def test_what_is_frozen_stays():
    after, _ = one_step()
    assert float(after.frozen["scale"]) == 2.0


def test_gradient_norms_are_told_for_all_and_each_before_clipping():
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(0.1))
    before, batch = make_state(optimizer), make_batch()
    _, metrics = jax.jit(make_step(loss_fn, optimizer, CONFIG))(before, batch, ROOT)
    gradients = jax.grad(lambda p: loss_fn(p, before.frozen, batch, ROOT, 0)[0])(before.params)
    norms = [float(jnp.linalg.norm(g.reshape(-1))) for g in jax.tree.leaves(gradients)]
    np.testing.assert_allclose(metrics["leaf_norms"], norms, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(norms), rtol=1e-5)


def test_a_broken_parameter_can_be_told_from_the_others():
    batch = make_batch()
    batch["x"] = batch["x"].at[0, 0].set(jnp.inf)
    optimizer = optax.sgd(0.1)
    _, metrics = jax.jit(make_step(loss_fn, optimizer, CONFIG))(make_state(optimizer), batch, ROOT)
    assert not np.isfinite(float(metrics["grad_norm"]))
    assert not np.isfinite(np.asarray(metrics["leaf_norms"])).all()


def test_a_donated_state_is_used_up_and_the_result_is_the_same():
    optimizer = optax.adam(0.1)
    step = make_step(loss_fn, optimizer, CONFIG)
    kept, _ = jax.jit(step)(make_state(optimizer), make_batch(), ROOT)
    before = make_state(optimizer)
    given, _ = jax.jit(step, donate_argnums=0)(before, make_batch(), ROOT)
    assert before.params["layer"]["w"].is_deleted()
    jax.tree.map(np.testing.assert_array_equal, kept, given)


def test_the_donated_bytes_are_those_of_the_state():
    optimizer = make_optimizer(OptimizerConfig(), 1)
    state = make_state(optimizer)
    step = make_step(loss_fn, optimizer, CONFIG)
    memory = jax.jit(step, donate_argnums=0).lower(state, make_batch(), ROOT).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_the_norm_for_clipping_is_computed_once():
    """A square of each gradient for its norm, and none more to clip by."""

    def squares(max_grad_norm: float | None) -> int:
        optimizer = make_optimizer(OptimizerConfig(max_grad_norm=max_grad_norm), 1)
        step = make_step(loss_fn, optimizer, CONFIG)
        text = str(jax.make_jaxpr(step)(make_state(optimizer), make_batch(), ROOT))
        return text.count("sqrt") + text.count("square") + text.count("integer_pow")

    assert squares(1.0) == squares(None)


def test_it_compiles_once():
    traces = []

    def counted(*arguments):
        traces.append(1)
        return loss_fn(*arguments)

    optimizer = optax.adam(0.1)
    step = jax.jit(make_step(counted, optimizer, CONFIG))
    state = make_state(optimizer)
    for seed in range(3):
        state, _ = step(state, make_batch(seed=seed), ROOT)
    assert len(traces) == 1
