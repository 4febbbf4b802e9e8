"""Dense layers, and the gradients of what is added to every position."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike
from module_trials import apply, param_shapes, random_array, random_params

from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dense import Dense, product, spread
from ldm_jax.nn.resample import Downsample
from ldm_jax.nn.resnet import ResBlock

POSITIONS = 2 * 16 * 16
"""Terms of the sums below: ones, whose sum in bfloat16 ends at 256."""


def test_it_is_a_matrix_product_and_a_bias() -> None:
    x = random_array(2, 3, 4)
    params = random_params(Dense(5), x)
    np.testing.assert_allclose(apply(Dense(5), params, x), x @ params["kernel"] + params["bias"], atol=1e-5)


def gradient(module: nn.Module, *inputs: np.ndarray) -> dict[str, Any]:
    """Of the sum of all outputs, with respect to random parameters."""
    params, arrays = random_params(module, *inputs), [jnp.asarray(x) for x in inputs]

    def loss(params: dict[str, Any]) -> jax.Array:
        return jnp.sum(jnp.asarray(module.apply({"params": params}, *arrays), jnp.float32))

    return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize("features", [2, 9])
def test_its_gradients_are_those_of_the_product(features: int) -> None:
    """Narrower and wider than its input: a CPU transposes the narrower of input and gradient."""
    x, kernel = random_array(3, 4, 5), random_array(5, features, seed=1)

    def derivatives(operation):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(operation(x, kernel)))

        return jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(x), jnp.asarray(kernel))

    for ours, expected in zip(derivatives(product), derivatives(jnp.matmul), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_parameters_are_those_of_linens_layer() -> None:
    x, key = jnp.ones((2, 4)), jax.random.key(0)
    jax.tree.map(np.testing.assert_array_equal, Dense(5).init(key, x), nn.Dense(5).init(key, x))
    assert param_shapes(Dense(5, use_bias=False), np.ones((2, 4), np.float32)) == {"kernel": (4, 5)}


@pytest.mark.parametrize(
    "module",
    [Dense(3, dtype=jnp.bfloat16), Conv(3, dtype=jnp.bfloat16), Conv(3, 1, dtype=jnp.bfloat16)],
    ids=["dense", "conv", "conv_1x1"],
)
def test_the_gradient_of_a_bias_in_bfloat16_is_summed_in_float32(module: nn.Module) -> None:
    np.testing.assert_array_equal(gradient(module, random_array(2, 16, 16, 4))["bias"], np.full(3, POSITIONS))


def test_so_is_that_of_a_strided_convolution() -> None:
    module = Downsample(symmetric=True, dtype=jnp.bfloat16)
    bias = gradient(module, random_array(2, 32, 32, 4))["conv"]["bias"]
    np.testing.assert_array_equal(bias, np.full(4, POSITIONS))


@pytest.mark.parametrize("scale_shift_norm", [False, True])
def test_so_is_that_of_the_embedding_of_a_residual_block(scale_shift_norm: bool) -> None:
    """Beside float32: the embedding's bias reaches every position of its channel."""
    inputs = random_array(1, 32, 32, 8), random_array(1, 4, seed=1)
    block = ResBlock(8, 2, scale_shift_norm=scale_shift_norm)
    exact = gradient(block, *inputs)["embedding"]["bias"]
    found = gradient(block.clone(dtype=jnp.bfloat16), *inputs)["embedding"]["bias"]
    np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_spreading_repeats(dtype: DTypeLike) -> None:
    y = spread(jnp.arange(3.0), (2, 5, 3), dtype)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(jnp.float32), np.tile(np.arange(3.0), (2, 5, 1)))
