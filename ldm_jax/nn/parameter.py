"""Parameters of layers."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jaxtyping import Array, Float


def parameter(module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """A float32 parameter, created by `init` or read, as `module.param` does it, but without calling `init` to read.

    `module.param` traces it wherever a parameter is read, to compare shapes: up to a quarter of tracing a step
    (docs/performance.md).

    Raises:
        flax.errors.ScopeParamShapeError: the parameter that was given has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = module.get_variable("params", name)
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/" + "/".join(module.path), value.shape, shape)
    return jnp.asarray(value)
