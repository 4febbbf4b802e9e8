"""A view of some examples of a source, in an order of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

from ldm_jax.data.source import Example, Source, SourceInfo
from ldm_jax.data.transforms import Transform


@dataclass(frozen=True, eq=False)
class Selection:
    """The examples of `source` at `indices`."""

    source: Source
    indices: Sequence[int]

    @property
    def info(self) -> SourceInfo:
        """What is known of the source."""
        return self.source.info

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        """The example at an index of the view."""
        return self.source[self.indices[index]]

    def by_source_index(self, transform: Transform) -> Transform:
        """The same transform, which is told the index in the source for that in the view."""
        return lambda example, n: transform(example, self.indices[n])

    def annotation(self, index: int) -> Example:
        """The example without its arrays."""
        return self.source.annotation(self.indices[index])
