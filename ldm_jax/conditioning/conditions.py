"""What a conditioner gives to the denoiser, and how a condition is dropped in training."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

# What a conditioner takes: arrays by name, the sample axis first, such as {"tokens": [b, l]} or {"class_labels": [b]}.
Inputs = dict[str, Num[Array, "b ..."]]


class Conditions(NamedTuple):
    """The denoiser's conditions; what a model does not use is None."""

    context: Float[Array, "b l d"] | None = None
    class_labels: Int[Array, " b"] | None = None
    concat: Float[Array, "b *spatial k"] | None = None
    vector: Float[Array, "b v"] | None = None


def drop_inputs(inputs: Inputs, null: Inputs, drop: Bool[Array, " b"]) -> Inputs:
    """The inputs with those of the samples in `drop` replaced by the empty condition (Ho and Salimans 2022,
    arXiv:2207.12598, algorithm 1); inputs that `null` does not name stay."""

    def choose(given: Num[Array, "b ..."], empty: Num[Array, "b ..."]) -> Num[Array, "b ..."]:
        return jnp.where(drop.reshape(-1, *(1 for _ in given.shape[1:])), empty, given)

    return {name: choose(x, null[name]) if name in null else x for name, x in inputs.items()}
