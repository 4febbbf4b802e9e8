"""Products of an input and a kernel whose gradients are written out."""

from collections.abc import Callable
from typing import TypeAlias

import jax
from jaxtyping import Array

Product: TypeAlias = Callable[[Array, Array], Array]
"""Input and kernel -> result."""

Gradients: TypeAlias = Callable[[Array, Array, Array], tuple[Array, Array]]
"""Input, kernel and gradient of the result -> gradients of input and kernel."""


def with_gradients(gradients: Gradients) -> Callable[[Product], Product]:
    """A decorator that gives a product these gradients, for which it keeps input and kernel as they came."""

    def decorate(product: Product) -> Product:
        operation = jax.custom_vjp(product)

        def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
            return operation(x, kernel), (x, kernel)

        def backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
            return gradients(*kept, gradient)

        operation.defvjp(forward, backward)
        return operation

    return decorate
