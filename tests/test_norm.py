"""Normalisation: zero mean and unit variance by group, also where one-pass statistics lose every digit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import abstract_call, apply, compiled, random_array, replaced

from ldm_jax.nn.norm import GroupNorm, group_norm, layer_norm

SHAPES = [(2, 7, 8), (2, 5, 3, 8), (2, 3, 2, 4, 8)]
normalise = compiled(lambda x, scale, bias: group_norm(x, scale, bias, 4, 1e-5))


def norm(x: np.ndarray) -> np.ndarray:
    return normalise(x, np.ones(8), np.zeros(8))


def groups(x: np.ndarray, num_groups: int = 4) -> np.ndarray:
    """[batch, group, values of the group]"""
    x = np.asarray(x, np.float64)
    return np.moveaxis(x.reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups), 2, 1).reshape(
        x.shape[0], num_groups, -1
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_group_has_zero_mean_and_unit_variance(shape: tuple[int, ...]) -> None:
    y = groups(norm(3 * random_array(*shape) - 1))
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(axis=-1), 1, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_flaxs_two_pass_group_norm(shape: tuple[int, ...]) -> None:
    x, scale, bias = random_array(*shape), random_array(8, seed=1), random_array(8, seed=2)
    flax = nn.GroupNorm(num_groups=4, epsilon=1e-6, use_fast_variance=False)
    expected = apply(flax, {"scale": scale, "bias": bias}, x)
    np.testing.assert_allclose(apply(GroupNorm(4, 1e-6), {"scale": scale, "bias": bias}, x), expected, atol=2e-6)


def test_a_small_spread_around_a_large_mean_keeps_its_digits() -> None:
    x = 1000 + 0.01 * random_array(2, 16, 16, 8)
    exact = groups(x)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(groups(norm(x)), exact, atol=2e-2)  # the mean itself is rounded to 6e-5, spread is 1e-2


def test_shifting_and_scaling_the_input_changes_nothing() -> None:
    x = random_array(*SHAPES[1])
    per_group = np.repeat([-3.0, 0.5, 2.0, 10.0], 2)
    np.testing.assert_allclose(norm(5 * x + per_group), norm(x), atol=1e-4)


def test_samples_do_not_see_each_other() -> None:
    x = random_array(*SHAPES[1])
    np.testing.assert_array_equal(norm(x)[:1], norm(replaced(x, 1, 7 * x[1]))[:1])


def test_scale_and_bias_are_applied_to_each_channel() -> None:
    x, scale, bias = random_array(*SHAPES[1]), random_array(8, seed=1), random_array(8, seed=2)
    np.testing.assert_allclose(normalise(x, scale, bias), norm(x) * scale + bias, atol=1e-6)


def test_a_constant_input_gives_the_bias_and_a_finite_gradient() -> None:
    x, bias = np.full((1, 4, 4, 8), 3.0), random_array(8)
    np.testing.assert_array_equal(normalise(x, np.ones(8), bias), np.broadcast_to(bias, x.shape))
    gradient = compiled(jax.grad(lambda x: jnp.sum(group_norm(x, jnp.ones(8), jnp.ones(8), 4, 1e-5) ** 2)))
    assert np.all(np.isfinite(gradient(x)))


def test_statistics_of_bfloat16_inputs_are_taken_in_float32() -> None:
    x = (100 + random_array(2, 16, 16, 8)).astype(jnp.bfloat16)
    assert norm(x).dtype == jnp.float32
    np.testing.assert_array_equal(norm(x), norm(x.astype(jnp.float32)))


def test_the_module_has_float32_parameters_and_gives_the_compute_dtype() -> None:
    x = random_array(*SHAPES[1])
    module = GroupNorm(4, dtype=jnp.bfloat16)
    _, params = abstract_call(module, x)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in params.items()} == {
        "scale": ((8,), jnp.float32),
        "bias": ((8,), jnp.float32),
    }
    y = apply(module, {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, norm(x).astype(jnp.bfloat16))


def test_layer_norm_normalises_each_token_and_keeps_digits_far_from_zero() -> None:
    x = 1000 + 0.1 * random_array(2, 5, 64)
    module = layer_norm(jnp.float32, "norm")
    y = apply(module, {"scale": np.ones(64), "bias": np.zeros(64)}, x).astype(np.float64)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=2e-3)
    np.testing.assert_allclose(y.var(axis=-1), 1, atol=5e-3)
