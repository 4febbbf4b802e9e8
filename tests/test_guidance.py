"""Classifier-free guidance: its ends, its linearity, and two calls against one."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import guide, guide_batched, linear, pair

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
