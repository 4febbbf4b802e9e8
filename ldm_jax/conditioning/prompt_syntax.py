"""Weights inside a prompt: `(word)`, `(word:1.3)` and `[word]`, as AUTOMATIC1111's web interface reads them.

(1) `(text)` multiplies the weight of its text by 1.1, `[text]` by 1 / 1.1, `(text:1.3)` by 1.3; brackets nest
(2) `\\(`, `\\)`, `\\[`, `\\]` and `\\\\` are the characters themselves

Where that interface reads on, this one stops and tells the place: a bracket that is not opened or not closed, a number
that is none, and `[text:number]`, which there changes the prompt on the way and here would be taken for a weight.
"""

import math
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ldm_jax.errors import UserError

ROUND, SQUARE = 1.1, 1.0 / 1.1
"""What round and square brackets without a number multiply with (1)."""

_TOKEN = re.compile(r"\\[()\[\]\\]|.", re.DOTALL)
"""An escaped character (2), or any other."""
_CLOSING = {"(": ")", "[": "]"}
_NUMBER = re.compile(r":\s*([+-]?[.\d][^\s():\[\]]*|[+-][^\s():\[\]]*)\s*\Z")
"""What stands behind the last colon in brackets, if it begins like a number."""


class WeightedText(NamedTuple):
    """A prompt without its brackets, and the weight of each of its characters."""

    text: str
    weights: Float64[np.ndarray, " n"]


class _Open(NamedTuple):
    """A bracket that is open: itself, its place in the prompt, and how much text lay before it."""

    bracket: str
    place: int
    start: int


def parse_weights(prompt: str) -> WeightedText:
    """Take the weights out of a prompt (1), (2).

    Raises:
        UserError: a bracket or a weight is wrong, with its position.
    """
    text: list[str] = []
    weights: list[float] = []
    stack: list[_Open] = []
    for token in _TOKEN.finditer(prompt):
        if token[0] in ("(", "["):
            stack.append(_Open(token[0], token.start(), len(text)))
        elif token[0] in (")", "]"):
            _close(prompt, token.start(), stack, text, weights)
        else:
            text.append(token[0][-1])
            weights.append(1.0)
    if stack:
        raise _error(prompt, stack[-1].place, f"{stack[-1].bracket!r} is never closed")
    return WeightedText("".join(text), np.asarray(weights, np.float64))


def _close(prompt: str, place: int, stack: list[_Open], text: list[str], weights: list[float]) -> None:
    """Close a bracket: take its number out of the text and multiply the weights of what is left."""
    if not stack or _CLOSING[stack[-1].bracket] != prompt[place]:
        inside = f" inside {stack[-1].bracket!r}" if stack else ""
        raise _error(prompt, place, f"{prompt[place]!r} closes nothing{inside}")
    bracket, opened, start = stack.pop()
    factor = ROUND if bracket == "(" else SQUARE
    if found := _NUMBER.search("".join(text[start:])):
        if bracket == "[":
            raise _error(prompt, opened, f"[...:{found[1]}] is no weight; write (...:{found[1]})")
        factor = _number(prompt, place, found[1])
        del text[start + found.start() :], weights[start + found.start() :]
    weights[start:] = [weight * factor for weight in weights[start:]]


def _number(prompt: str, place: int, written: str) -> float:
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _error(prompt, place - len(written), f"{written!r} is not a number")
    return value


def _error(prompt: str, place: int, what: str) -> UserError:
    marked = f"{prompt[max(place - 20, 0) : place]}>>>{prompt[place : place + 20]}"
    return UserError(
        f"the prompt {prompt!r} has a wrong weight at position {place + 1} ({marked}): {what}; weights are (word), "
        r"(word:1.3) and [word], and brackets that are meant are \( \) \[ \], or --prompt-syntax plain"
    )
