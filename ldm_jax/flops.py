"""Floating-point operations of a function, counted in its jaxpr: those of convolutions and of matrix products.

A multiplication and an addition count as two operations; everything else (norms, activations, softmax) counts as none:

(1) dot product: 2 (values of the output) (length of the contraction)
(2) convolution: 2 (values of the output) (positions of the kernel) (input channels of a group) / (dilation of the
    input): a multiplication with the zeros between the values of a dilated input, as in the gradient of a strided
    convolution, is no work
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

_ATTENTION_PRODUCTS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}
"""Products of cuDNN's kernels for attention, with the weights that the gradient's computes again."""


def count_flops(fn: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of `fn(*args)` (1), (2); the arguments may be abstract (`jax.ShapeDtypeStruct`).

    Loops count as often as they run, a `while` of unknown length once, and a condition as its longer branch. What is
    computed again for the sake of memory (`jax.checkpoint`) is counted again. A Pallas kernel counts as its body at
    every point of its grid, with the longer branch of each condition: blocks that it skips are counted, too.
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def count_jaxpr(jaxpr: core.Jaxpr) -> float:
    """Floating-point operations of a jaxpr and of all that it calls, but for what leads to none of its results."""
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _sum(live)


def _sum(jaxpr: core.Jaxpr) -> float:
    return sum(_count(equation) for equation in jaxpr.eqns)


def _count(equation: core.JaxprEqn) -> float:
    match equation.primitive.name:
        case "dot_general":
            return _dot(equation)
        case "conv_general_dilated":
            return _convolution(equation)
        case "pallas_call":
            grid = [size for size in equation.params["grid_mapping"].grid if isinstance(size, int)]
            return _sum(equation.params["jaxpr"]) * math.prod(grid)
        case name if name in _ATTENTION_PRODUCTS:
            return _ATTENTION_PRODUCTS[name] * _product_of_attention(equation)
        case "cond":
            return max(_sum(inner) for inner in _inner_jaxprs(equation.params["branches"]))
    inner = sum(_sum(jaxpr) for value in equation.params.values() for jaxpr in _inner_jaxprs(value))
    return inner * _repetitions(equation) if inner else 0.0


def _inner_jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    """The jaxprs in a parameter of an equation, open or closed, alone or several."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inner_jaxprs(item)


def _repetitions(equation: core.JaxprEqn) -> int:
    """How often the body of an equation runs: steps of a scan, devices that each run the body of a shard_map."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        mesh = equation.params["mesh"]
        axes = equation.params.get("newly_manual_axes", mesh.axis_names)
        return math.prod(mesh.shape[axis] for axis in axes)
    return 1


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, output = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2.0 * math.prod(output) * math.prod(left[dim] for dim in contracted)


def _convolution(equation: core.JaxprEqn) -> float:
    _, channels, *spatial = equation.params["dimension_numbers"].rhs_spec
    kernel, output = _shape(equation.invars[1]), _shape(equation.outvars[0])
    positions = math.prod(kernel[dim] for dim in spatial)
    return 2.0 * math.prod(output) * positions * kernel[channels] / math.prod(equation.params["lhs_dilation"])


def _product_of_attention(equation: core.JaxprEqn) -> float:
    """Of queries [b, q, n, d] with keys [b, k, n, d], or of as many weights with values."""
    query, key = map(_shape, equation.invars[:2])
    return 2.0 * math.prod(query) * key[1]
