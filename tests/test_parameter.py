"""Parameters of layers: as Linen's own, without tracing the initializer again."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

from ldm_jax.nn.apply import apply
from ldm_jax.nn.parameter import parameter


class Ours(nn.Module):
    """One parameter, by `parameter`."""

    size: int
    init_fn: Any = nn.initializers.normal()

    @nn.compact
    def __call__(self) -> jax.Array:
        return parameter(self, "w", self.init_fn, (self.size,))


class Linens(nn.Module):
    """The same, by Linen."""

    size: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("w", nn.initializers.normal(), (self.size,), jnp.float32)


def params_of(module: nn.Module) -> Any:
    return module.init(jax.random.key(3))["params"]


def test_it_is_linens() -> None:
    params = params_of(Ours(5))
    np.testing.assert_array_equal(params["w"], params_of(Linens(5))["w"])
    np.testing.assert_array_equal(apply(Ours(5), params), params["w"])


def test_reading_one_does_not_call_the_initializer() -> None:
    def init(*_: Any) -> Any:
        raise AssertionError

    assert apply(Ours(5, init), params_of(Ours(5))).shape == (5,)


@pytest.mark.parametrize("module", [Ours, Linens])
def test_another_shape_is_refused(module: type[nn.Module]) -> None:
    params = params_of(Ours(5))
    with pytest.raises(ScopeParamShapeError, match=r'"w" in "/", .*\(6,\), .*\(5,\)'):
        apply(module(6), params)


@pytest.mark.parametrize("module", [Ours, Linens])
def test_a_missing_one_is_named(module: type[nn.Module]) -> None:
    with pytest.raises(ScopeParamNotFoundError, match='"w"'):
        apply(module(5), {"other": jnp.zeros(2)})
