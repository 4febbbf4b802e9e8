"""One example of latents as the bytes of a record, and back: arrays of known shapes, then the annotation as JSON.

A posterior without spread, that of a VQ autoencoder before the lookup, is stored as its means alone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns the name bfloat16 from it
import numpy as np

from ldm_jax.data.source import Example

EMBEDDED = ("context", "pooled")
"""What a text encoder makes of a caption: a vector for each token, and in SDXL one for all of it."""


@dataclass(frozen=True, kw_only=True)
class ArrayField:
    """An array that every record of a set holds."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in a record."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is in a record."""

    arrays: Mapping[str, ArrayField]
    """`moments` [flips, h, w, d], and where they were asked for `sizes` [6], `context` [l, d] and `pooled` [e]."""
    is_point: bool
    """Whether posteriors have no spread: d is then the channels of a latent, and else twice as many."""

    @property
    def num_channels(self) -> int:
        """Channels of a latent."""
        return self.arrays["moments"].shape[-1] // (1 if self.is_point else 2)

    @property
    def num_flips(self) -> int:
        """1, or 2 where the mirror image of each picture is there too."""
        return self.arrays["moments"].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of a record."""
        return sum(field.nbytes for field in self.arrays.values())

    def pack(self, example: Example) -> bytes:
        """A record of an example with the arrays of the layout, its moments complete."""
        parts = []
        for name, field in self.arrays.items():
            array = example[name][..., : self.num_channels] if name == "moments" and self.is_point else example[name]
            assert array.shape == field.shape, f"{name} is of shape {array.shape}, not {field.shape}"
            parts.append(np.ascontiguousarray(array, _little(field.dtype)).tobytes())
        annotation = {name: value for name, value in example.items() if name not in self.arrays}
        return b"".join([*parts, json.dumps(annotation).encode()])

    def unpack(self, record: bytes) -> Example:
        """The example of a record; its arrays cannot be written to.

        Raises:
            ValueError: the record is of another layout.
        """
        example, begin = self.annotation(record), 0
        for name, field in self.arrays.items():
            array = np.frombuffer(record, _little(field.dtype), math.prod(field.shape), begin)
            example[name], begin = array.reshape(field.shape), begin + field.nbytes
        if self.is_point:
            mean = example["moments"]
            example["moments"] = np.concatenate([mean, np.full_like(mean, -np.inf)], axis=-1)
        return example

    def annotation(self, record: bytes) -> Example:
        """The example of a record without its arrays; raises ValueError where `unpack` does."""
        values: dict[str, Any] = json.loads(record[self.nbytes :])
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _little(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")
