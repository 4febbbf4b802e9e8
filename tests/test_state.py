"""The state of a run, and the moving average in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.training.state import TrainState, update_average


def make_state() -> TrainState:
    params = {"denoiser": {"w": jnp.arange(3.0)}}
    return TrainState.create(params, {"latent": {"std": jnp.ones(2)}}, optax.adam(1e-3))


def test_it_starts_at_step_zero_with_the_average_at_the_parameters():
    state = make_state()
    assert int(state.step) == 0
    np.testing.assert_array_equal(state.ema_params["denoiser"]["w"], state.params["denoiser"]["w"])


def test_parameters_and_average_have_buffers_of_their_own():
    """Else a donated state would be donated twice."""
    state = make_state()
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)


def test_the_model_is_the_average_and_what_is_fixed():
    state = make_state()._replace(ema_params={"denoiser": {"w": jnp.full(3, 9.0)}})
    assert set(state.model_params) == {"denoiser", "latent"}
    np.testing.assert_array_equal(state.model_params["denoiser"]["w"], np.full(3, 9.0))


@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.floats(-5, 5), st.floats(-5, 5), st.booleans())
def test_the_average_follows_its_formula(step: int, ema_decay: float, average: float, value: float, warmup: bool):
    old, new = {"w": jnp.float32(average)}, {"w": jnp.float32(value)}
    moved = update_average(old, new, jnp.int32(step), ema_decay, warmup=warmup)["w"]
    decay = min(ema_decay, (2 + step) / (11 + step)) if warmup else ema_decay
    np.testing.assert_allclose(float(moved), decay * average + (1 - decay) * value, rtol=1e-4, atol=1e-5)


def test_the_average_stays_where_the_parameters_are():
    value = {"w": jnp.float32(0.1)}
    assert float(update_average(value, value, jnp.int32(5), 0.999)["w"]) == float(value["w"])
