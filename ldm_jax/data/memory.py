"""A source that remembers what it has read, so that small data sets are decoded once."""

from dataclasses import dataclass, field

from ldm_jax.data.source import PICTURES, Example, Source, SourceInfo

MAX_BYTES = 256 * 2**20
"""Pictures are remembered until they take this much memory; later ones are read every time."""


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
            if self._used[0] < self.max_bytes:  # threads may overshoot by a picture each
                self._used[0] += sum(example[key].nbytes for key in PICTURES & example.keys())
                self._examples[index] = example
        return example

    def annotation(self, index: int) -> Example:
        """The example without its pictures."""
        example = self._examples.get(index)
        if example is None:
            return self.source.annotation(index)
        return {key: value for key, value in example.items() if key not in PICTURES}
