"""How the tests try a flax module: its parameter tree without computing it, random parameters, and compiled calls."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def replaced(x: np.ndarray, index: Any, value: Any) -> np.ndarray:
    """A copy of `x` with other values at `index`."""
    x = x.copy()
    x[index] = value
    return x


def abstract_call(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, dict]:
    """Output and parameter tree of `module` for arguments of these shapes; nothing is computed."""

    def init(*args: Any) -> Any:
        return module.init_with_output(jax.random.key(0), *args, **kwargs)

    output, variables = jax.eval_shape(init, *args)
    assert set(variables) <= {"params"}, "modules have no mutable collections"
    return output, variables.get("params", {})


def abstract_params(module: nn.Module, *args: Any, **kwargs: Any) -> dict:
    """The parameter tree of `module` for arguments of these shapes."""
    return abstract_call(module, *args, **kwargs)[1]


def param_shapes(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path."""
    tree = abstract_params(module, *args, **kwargs)
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def num_params(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Number of parameters."""
    return sum(int(np.prod(shape)) for shape in param_shapes(module, *args, **kwargs).values())


def random_params(module: nn.Module, *args: Any, seed: int = 0, **kwargs: Any) -> dict:
    """Random parameters, also where the initial ones are zero, so that every path through `module` counts."""
    generator = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = generator.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) or 1)
        return jnp.asarray(values if len(leaf.shape) > 1 else 1 + 0.3 * values, leaf.dtype)

    return jax.tree.map(draw, abstract_params(module, *args, **kwargs))


def compiled(function: Callable) -> Callable:
    """`function`, compiled, from and to numpy arrays.

    Tests wait mostly for the compiler. Every small operation on jax arrays outside of a function costs a compilation of
    its own, so what surrounds the call is numpy.
    """
    jitted = jax.jit(function)
    return lambda *args: jax.tree.map(np.asarray, jitted(*args))


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    """One compiled call of a module."""
    return compiled(lambda p, a: module.apply({"params": p}, *a, **kwargs))(params, args)
