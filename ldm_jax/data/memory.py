"""A source that remembers what it has read, so that small data sets are decoded once."""

from dataclasses import dataclass, field

import numpy as np

from ldm_jax.data.source import Example, Source, SourceInfo

MAX_BYTES = 256 * 2**20
"""Examples are remembered until they take this much memory; later ones are read every time."""


@dataclass(frozen=True, eq=False)
class MemorySource:
    """The same examples as the source behind it. Whoever takes one leaves its arrays as they are."""

    source: Source
    max_bytes: int = MAX_BYTES
    _examples: dict[int, Example] = field(default_factory=dict)
    _used: list[int] = field(default_factory=lambda: [0])

    @property
    def info(self) -> SourceInfo:
        """What is known without reading."""
        return self.source.info

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """The example at an index."""
        example = self._examples.get(index)
        if example is None:
            example = self.source[index]
            if self._used[0] < self.max_bytes:  # threads may overshoot by an example each
                self._used[0] += sum(value.nbytes for value in example.values() if isinstance(value, np.ndarray))
                self._examples[index] = example
        return example

    def annotation(self, index: int) -> Example:
        """The example without its arrays."""
        example = self._examples.get(index)
        if example is None:
            return self.source.annotation(index)
        return {key: value for key, value in example.items() if not isinstance(value, np.ndarray)}
