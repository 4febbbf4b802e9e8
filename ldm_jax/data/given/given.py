"""What a kind of given thing answers: which arrays an example gives to the model, and which the files of a person."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ldm_jax.data.source import Example
from ldm_jax.files.places import Place

Arrays: TypeAlias = dict[str, np.ndarray]
"""Inputs of the model for one sample, by the names that its conditioner has for them."""


class Part(NamedTuple):
    """A file that a person gives."""

    name: str
    what: str
    """What it is, for messages: "the picture, 32 x 32 pixels"."""


@runtime_checkable
class Given(Protocol):
    """Makes the inputs of a model; safe to call from several threads."""

    is_map: bool
    """Whether what is given lies in places of the picture, and so has its size."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The files that `of_files` takes."""
        ...

    def at(self, size: tuple[int, int]) -> "Given":
        """The same for pictures of another height and width than those of training."""
        ...

    def of_example(self, example: Example, rng: np.random.Generator) -> Arrays:
        """The inputs that an example gives, behind the transforms; its `image` is float32 in [-1, 1].

        Random numbers are those of this sample.
        """
        ...

    def of_files(self, files: Mapping[str, Place]) -> Arrays:
        """The inputs that files give, one for each part.

        Raises:
            UserError: a file is not what it has to be; the message says what that is.
        """
        ...

    def shown(self, arrays: Arrays) -> UInt8[np.ndarray, "h w 3"]:
        """The inputs as a picture of the size of the model's, for people."""
        ...
