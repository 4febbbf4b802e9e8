"""What a source of pictures is: random access to examples, and what is known of them without reading."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from ldm_jax.config.checks import HOW

Split: TypeAlias = Literal["train", "test"]

Example: TypeAlias = dict[str, Any]
"""One example: `image` uint8 [h, w, c] (or `moments` float32 [flips, h, w, c]), `caption` str, `tags` tuple of str,
`label` int, `id` str. Without captions `caption` is empty, without classes `label` is -1. With moments there may also
be `sizes` int32 [flips, 6] and the embedded caption, `context` [l, d]. Where the source knows the objects in its
pictures: `boxes` float32 [objects, 4] (left, top, right, bottom as fractions of the picture) with `box_labels` int64
[objects], and where it has a map of them `label_map` uint8 [h, w, 1] (0 background, 1 + label). Where pictures were
made smaller for the set, `original_size` int32 [2], height and width."""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What is known of a source without reading it."""

    name: str = field(metadata=HOW)
    """Name of the data set, for messages and logs; a folder of pictures has its own, wherever that has been moved."""
    split: str
    """Which part of it this is."""
    fingerprint: str
    """SHA-256 (hex) of what the examples are; another prepared set, split or choice of examples has another one."""
    class_names: tuple[str, ...] = ()
    """Names of the classes; `label` indexes them. Empty: there are none."""
    object_names: tuple[str, ...] = ()
    """Names of the labels of objects in pictures; `box_labels` index them. Empty: objects are not known."""
    has_captions: bool = False
    """Whether examples carry captions."""
    max_tags: int = 0
    """Most tags that a training caption may carry behind its label."""
    credit: str = field(default="", metadata=HOW)
    """Whom to credit where pictures are shown."""

    @property
    def has_labels(self) -> bool:
        """Whether examples carry classes."""
        return bool(self.class_names)


@runtime_checkable
class Source(Protocol):
    """A random access source of examples, as Grain reads them; safe to read from several threads."""

    @property
    def info(self) -> SourceInfo:
        """What is known without reading."""
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at an index."""
        ...

    def annotation(self, index: int) -> Example:
        """The example without its arrays: caption, tags, label and id (much quicker)."""
        ...


def training_texts(source: Source) -> list[str]:
    """Every caption of a source, each with all of its tags behind it: what a tokenizer is trained on."""
    annotations = (source.annotation(index) for index in range(len(source)))
    return [", ".join([example["caption"], *example["tags"]]) for example in annotations]
