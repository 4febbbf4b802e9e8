"""Our side of `ldm parity --layers`: what every module puts out, and the gradients, of one pass through a component."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from ldm_jax.interop.layer_components import Component
from ldm_jax.model import Params

Arrays = dict[str, np.ndarray]


class Trace(NamedTuple):
    """What is recorded of one pass, in float32."""

    layers: Arrays
    """Outputs as [batch, positions, channels] by the path of the module; of those that put out one array."""
    outputs: Arrays
    """Outputs of the network, in PyTorch's layout."""
    parameters: Params | None = None
    """Gradients, in our layouts; None where there are none."""
    inputs: Arrays | None = None
    """Gradients with respect to the inputs that are no whole numbers, in PyTorch's layout."""


def trace(component: Component, dtype: DTypeLike, cotangents: Mapping[str, np.ndarray] | None = None) -> Trace:
    """Run a component in a compute dtype, on its parameters and inputs rounded to it.

    Args:
        component: the network, its parameters and inputs.
        dtype: of the computation; parameters and gradients stay in float32.
        cotangents: numbers v for each output, for the gradients of sum(<output, v>); None, or numbers of other shapes
            than the outputs, compute none.
    """
    module = component.module(jnp.dtype(dtype))
    whole = {name: jnp.asarray(x) for name, x in component.inputs.items() if np.issubdtype(x.dtype, np.integer)}
    given = {name: x for name, x in component.inputs.items() if name not in whole}

    def run(params: Params, inputs: Mapping[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        outputs, state = module.apply(
            {"params": params},
            {**inputs, **whole},
            method=component.call,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        layers: dict[str, Any] = flatten_dict(state["intermediates"], sep="/")
        kept = {path: values[-1] for path, values in layers.items() if isinstance(values[-1], jax.Array)}
        return jax.tree.map(lambda x: x.astype(jnp.float32), (kept, outputs))

    def weighted(params: Params, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, Any]:
        found = run(params, inputs)
        return jnp.sum(jnp.asarray([jnp.vdot(found[1][name], v) for name, v in (cotangents or {}).items()])), found

    arguments = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype).astype(jnp.float32), (component.params, given))
    shapes = {name: x.shape for name, x in jax.eval_shape(run, *arguments)[1].items()}
    with jax.default_matmul_precision("highest"):  # accelerators multiply float32 in fewer bits otherwise
        if cotangents is None or any(shapes.get(name) != v.shape for name, v in cotangents.items()):
            found, gradients = jax.jit(run)(*arguments), (None, None)
        else:
            (_, found), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(*arguments)
    layers, outputs = jax.tree.map(np.asarray, found)
    by_path = {path.rpartition("/")[0]: as_positions(x) for path, x in layers.items()}
    by_path.pop("", None)  # the whole, whose output is among the outputs
    return Trace(by_path, outputs, *jax.tree.map(np.asarray, gradients))


def as_positions(x: np.ndarray) -> np.ndarray:
    """An output with its axes between batch and channels made one."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
