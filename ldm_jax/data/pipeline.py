"""Batches of a source, in an order that is a function of seed and position alone.

The global stream is the source shuffled anew every epoch, without end. A batch of the whole run holds B consecutive
positions of it and a process reads those rows that its devices hold, so what a run sees depends neither on the number
of processes nor on where it was interrupted: the step is the only state.

(1) position of row i of step s:        n = s * B + i
(2) example at position n:              source[shuffle(seed, epoch = n // N)(n mod N)]
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ldm_jax.data.latent_records import EMBEDDED
from ldm_jax.data.source import Example, Source
from ldm_jax.data.transforms import Transform, sample_rng
from ldm_jax.errors import UserError

Batch: TypeAlias = dict[str, np.ndarray]
"""`image` float32 [b, h, w, c] (or `moments` float32 [b, h, w, c]), `sample_index` int32 [b], and where they apply
`tokens` int32 [b, l] (or `context` [b, l, d], `pooled` [b, e]), `sizes` int32 [b, 6], `class_labels` int32 [b],
`valid` bool [b]."""

EncodeCaption: TypeAlias = Callable[[str], dict[str, np.ndarray]]
"""Maps a caption to token ids, int32 [l], by the name under which batches carry them."""

MakeInputs: TypeAlias = Callable[[Example, int], dict[str, np.ndarray]]
"""Maps an example behind the transforms, and its sample index, to further arrays of the batch by their names."""


def batches(
    source: Source,
    *,
    transforms: Sequence[Transform],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    shuffle: bool = True,
    num_threads: int = 0,
    encode_caption: EncodeCaption | None = None,
    make_inputs: MakeInputs | None = None,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on.

    Args:
        source: where examples come from.
        transforms: applied to each example in turn with its global sample index.
        batch_size: B, rows over all processes.
        seed: of the order; transforms carry their own.
        start_step: the first step, counted from 0.
        rows: rows of each batch that this process reads; None reads all.
        shuffle: False keeps the order of the source.
        num_threads: threads that read ahead; 0 reads in the calling thread. The batches are the same.
        encode_caption: tokenizer; without it batches carry no tokens.
        make_inputs: makes what else a model is given.

    Raises:
        UserError: the batch is larger than the source, or captions are needed and there are none.
    """
    if batch_size > len(source):
        raise UserError(
            f"training.batch_size={batch_size} is larger than the data set: {source.info.name}/{source.info.split} has "
            f"{len(source)} pictures; use at most {len(source)}"
        )
    own = _Rows(
        source=source,
        transforms=tuple(transforms),
        encode_caption=encode_caption,
        make_inputs=make_inputs,
        block=_Block(batch_size, _all_or(rows, batch_size), start_step),
        order=_order(len(source), seed if shuffle else None),
        num_rows=sys.maxsize,
    )
    return iter(_read(own, num_threads))


def epoch(
    source: Source,
    *,
    transforms: Sequence[Transform],
    batch_size: int,
    rows: Sequence[int] | np.ndarray | None = None,
    num_threads: int = 0,
    encode_caption: EncodeCaption | None = None,
    make_inputs: MakeInputs | None = None,
) -> Iterator[Batch]:
    """One pass over the source in its own order; `sample_index` is the index in the source.

    Every batch has the full size, so that a compiled function sees one shape: the last is filled up with copies of the
    last example, and `valid` tells which rows count. All processes get the same number of batches.

    Raises:
        UserError: as for `batches`.
    """
    block = _Block(batch_size, _all_or(rows, batch_size), 0)
    own = _Rows(
        source=source,
        transforms=tuple(transforms),
        encode_caption=encode_caption,
        make_inputs=make_inputs,
        block=block,
        order=lambda n: min(n, len(source) - 1),
        num_rows=-(-len(source) // batch_size) * len(block.rows),
        num_valid=len(source),
    )
    return iter(_read(own, num_threads))


def _all_or(rows: Sequence[int] | np.ndarray | None, batch_size: int) -> tuple[int, ...]:
    return tuple(range(batch_size)) if rows is None else tuple(map(int, rows))


@dataclass(frozen=True)
class _Block:
    """The rows of one process."""

    batch_size: int
    rows: tuple[int, ...]
    start_step: int

    def position(self, row: int) -> int:
        """Global position of a row of this process (1)."""
        step, i = divmod(row, len(self.rows))
        return (self.start_step + step) * self.batch_size + self.rows[i]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rows:
    """The rows of this process as a random access source for Grain: only they are ever decoded."""

    source: Source
    transforms: tuple[Transform, ...]
    encode_caption: EncodeCaption | None
    make_inputs: MakeInputs | None
    block: _Block
    order: Callable[[int], int]
    num_rows: int
    num_valid: int | None = None

    def __post_init__(self) -> None:
        if self.encode_caption is not None and not self.source.info.has_captions:
            raise UserError(
                f"the data set {self.source.info.name} has no captions, which text conditioning needs; "
                "use class conditioning or none, or another data set"
            )

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        position = self.block.position(index)
        chosen = self.order(position)
        n = position if self.num_valid is None else chosen
        example = self.source[chosen]
        for transform in self.transforms:
            example = transform(example, n)
        return self._arrays(example, n, position)

    def _arrays(self, example: dict[str, Any], n: int, position: int) -> dict[str, Any]:
        # Wraps after 2^31 samples: it seeds noise, where a repetition after so long does no harm.
        arrays: dict[str, Any] = {"sample_index": np.int32(n % 2**31)}
        carried = ("moments", "sizes", *EMBEDDED) if "moments" in example else ("image", "sizes")
        arrays |= {name: example[name] for name in carried if name in example}
        if self.encode_caption is not None and "context" not in arrays:
            arrays |= self.encode_caption(example["caption"])
        if self.make_inputs is not None:
            arrays |= self.make_inputs(example, n)
        if self.source.info.has_labels:
            arrays["class_labels"] = np.int32(example["label"])
        if self.num_valid is not None:
            arrays["valid"] = np.bool_(position < self.num_valid)
        return arrays


def _order(size: int, seed: int | None) -> Callable[[int], int]:
    """Index in the source at each position of the endless stream (2)."""
    if seed is None:
        return lambda n: n % size
    import grain

    order = grain.MapDataset.range(size).shuffle(seed=int(sample_rng(seed, "order", 0).integers(2**32))).repeat()

    def index_at(n: int) -> int:
        index = order[n]
        assert index is not None  # Grain's type allows for filters, and there is none
        return index

    return index_at


def _read(rows: _Rows, num_threads: int) -> Any:
    import grain

    # Grain's threads and buffer count batches here, as they are made before the iterator.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads + 2 if num_threads else 0)
    return grain.MapDataset.source(rows).batch(len(rows.block.rows), drop_remainder=True).to_iter_dataset(options)
