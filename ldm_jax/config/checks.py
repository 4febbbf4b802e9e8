"""What every configuration checks of its numbers."""

import math
from typing import Any

from ldm_jax.errors import UserError

HOW = {"identity": False}
"""Metadata of a field that may differ when a run folder is continued: how the work is done, not what comes out."""

LARGEST = 2**31 - 1
"""Largest whole number of a configuration, seeds included: sizes, steps and samples are counted in 32 bits."""

MOST_LAYERS = 1000
"""Largest number of layers of one kind behind each other: a network of more is not built in a lifetime."""


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_positive(config: Any, *names: str) -> None:
    """Refuse fields that are not finite numbers above 0."""
    for name in names:
        require_positive_value(f"{type(config).__name__}.{name}", getattr(config, name))


def require_positive_value(name: str, value: int | float) -> None:
    """Refuse a value that is not a finite number above 0."""
    require_number(name, value)
    require(value > 0, f"{name}={value} must be greater than 0")


def require_layers(name: str, value: int) -> None:
    """Refuse a number of layers that is not from 1 to `MOST_LAYERS`."""
    require_positive_value(name, value)
    require(value <= MOST_LAYERS, f"{name}={value} must be at most {MOST_LAYERS}")


def require_not_negative(config: Any, *names: str) -> None:
    """Refuse fields that are not finite numbers of at least 0."""
    for name in names:
        value = getattr(config, name)
        require_number(f"{type(config).__name__}.{name}", value)
        require(value >= 0, f"{type(config).__name__}.{name}={value} must not be negative")


def require_fraction(config: Any, *names: str) -> None:
    """Refuse fields that do not lie between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value <= 1.0, f"{type(config).__name__}.{name}={value} must lie between 0 and 1")


def require_number(name: str, value: int | float) -> None:
    """What every number has to be: nan passes many a comparison, inf nearly all, and arrays count in 32 bits."""
    require(abs(value) < math.inf, f"{name}={value} must be a finite number")
    require(not isinstance(value, int) or abs(value) <= LARGEST, f"{name}={value} must be at most {LARGEST}")


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that lies nearest to `wanted`."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return min([*small, *(number // d for d in reversed(small))], key=lambda d: abs(d - wanted))
