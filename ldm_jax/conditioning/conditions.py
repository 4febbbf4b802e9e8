"""What a conditioner gives to the denoiser, and how a condition is dropped in training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# What a conditioner takes: arrays by name, the sample axis first, such as {"tokens": [b, l]} or {"class_labels": [b]}.
Inputs = dict[str, Int[Array, "b ..."]]


class Conditions(NamedTuple):
    """The denoiser's conditions; what a model does not use is None."""

    context: Float[Array, "b l d"] | None = None
    class_labels: Int[Array, " b"] | None = None
    concat: Float[Array, "b *spatial k"] | None = None


def drop_inputs(inputs: Inputs, null: Inputs, drop: Bool[Array, " b"]) -> Inputs:
    """The inputs with those of the samples in `drop` replaced by the empty condition (Ho and Salimans 2022,
    arXiv:2207.12598, algorithm 1)."""

    def choose(given: Int[Array, "b ..."], empty: Int[Array, "b ..."]) -> Int[Array, "b ..."]:
        return jnp.where(drop.reshape(-1, *(1 for _ in given.shape[1:])), empty, given)

    return jax.tree.map(choose, inputs, null)
