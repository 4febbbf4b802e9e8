"""Modules as functions of their parameters."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Key


def apply(
    module: nn.Module, params: dict[str, Any], *arguments: Any, key: Key[Array, ""] | None = None, **options: Any
) -> Any:
    """Call a module without mutable state; `key` feeds its dropout. Linen's own type says a tuple may come back."""
    rngs = None if key is None else {"dropout": key}
    return module.apply({"params": params}, *arguments, rngs=rngs, **options)
