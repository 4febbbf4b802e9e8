"""A prepared TFDS set as a source: random access to its array_record files, pictures decoded here by Pillow."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ldm_jax.data.patience import Unreadable, read_patiently
from ldm_jax.data.pictures import open_picture, to_array
from ldm_jax.data.preparation import digest, import_tfds
from ldm_jax.data.source import Example, SourceInfo
from ldm_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Names of the features that hold the parts of an example; None where a set has no such part."""

    image: str = "image"
    caption: str | None = None
    tags: str | None = None
    label: str | None = None
    id: str | None = None
    objects: str | None = None
    """A sequence of `bbox` and `label`, as the detection sets of TFDS have it."""
    label_map: str | None = None
    """A grey picture of the size of the other: 0 for the background, else 1 + the label."""
    original_size: str | None = None
    """Height and width that the picture had before it was made smaller for the set."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordSource:
    """A choice of the records of one split of a prepared set."""

    info: SourceInfo
    keys: Keys
    records: Any
    """The TFDS data source; its pictures come as encoded bytes."""
    chosen: Int64[np.ndarray, " n"]
    """Which records, in order."""
    folder: Path
    """Where the set lies, for messages."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.chosen)

    def __getitem__(self, index: int) -> Example:
        """The example at an index; see `Example`.

        Raises:
            UserError: the record or the picture in it is damaged.
        """
        record = self._record(index)
        name = f"picture {index} of {self.info.name}/{self.info.split} in {self.folder}"
        keys, encoded = self.keys, {"image": self.keys.image, "label_map": self.keys.label_map}
        pictures = {part: to_array(open_picture(record[key], name)) for part, key in encoded.items() if key is not None}
        objects = _objects(record[keys.objects]) if keys.objects else {}
        size = {"original_size": np.asarray(record[keys.original_size])} if keys.original_size else {}
        return {**pictures, **objects, **size, **self._annotation(index, record)}

    def annotation(self, index: int) -> Example:
        """The example without its arrays."""
        return self._annotation(index, self._record(index))

    def select(self, keep: Callable[[Example], bool]) -> "RecordSource":
        """The examples whose annotation `keep` accepts, in the same order."""
        kept = np.array([i for i in range(len(self)) if keep(self.annotation(i))], np.int64)
        fingerprint = digest([self.info.fingerprint, kept.tolist()])
        return replace(self, chosen=self.chosen[kept], info=replace(self.info, fingerprint=fingerprint))

    def _record(self, index: int) -> Example:
        position = int(self.chosen[index])
        name = f"record {position} of {self.info.name}/{self.info.split}"
        try:
            return read_patiently(lambda: self.records[position], name)
        except Unreadable as error:
            raise UserError(
                f"{error}; the files in {self.folder} are damaged, or their disk fails: remove that folder to have "
                "the set made again"
            ) from error

    def _annotation(self, index: int, record: Example) -> Example:
        keys = self.keys
        tags = _text(record[keys.tags]) if keys.tags else ""
        return {
            "caption": _text(record[keys.caption]) if keys.caption else "",
            "tags": tuple(tags.split(", ")) if tags else (),
            "label": int(record[keys.label]) if keys.label else -1,
            "id": _text(record[keys.id]) if keys.id else str(int(self.chosen[index])),
        }


def open_records(
    folder: Path,
    tfds_split: str,
    keys: Keys,
    *,
    name: str,
    split: str,
    fingerprint: str,
    max_tags: int = 0,
    credit: str = "",
) -> RecordSource:
    """Open one split of the prepared TFDS set in `folder`.

    Args:
        folder: a prepared version, with its `dataset_info.json`.
        tfds_split: a split in TFDS slicing syntax.
        keys: which features to read.
        name: name of the data set, for messages.
        split: what the split is to us, for messages.
        fingerprint: of the whole set; the split is mixed in.
        max_tags: see `SourceInfo`.
        credit: see `SourceInfo`.

    Raises:
        UserError: the set has no such split, or was not prepared as array_record.
    """
    tfds = import_tfds()
    builder = tfds.builder_from_directory(folder)
    info = SourceInfo(
        name=name,
        split=split,
        fingerprint=digest([fingerprint, tfds_split]),
        class_names=tuple(builder.info.features[keys.label].names) if keys.label else (),
        object_names=tuple(builder.info.features[keys.objects]["label"].names) if keys.objects else (),
        has_captions=keys.caption is not None,
        max_tags=max_tags,
        credit=credit,
    )
    records = _data_source(tfds, builder, tfds_split, keys, folder)
    return RecordSource(info=info, keys=keys, records=records, chosen=np.arange(len(records)), folder=folder)


def _data_source(tfds: Any, builder: Any, split: str, keys: Keys, folder: Path) -> Any:
    sizes = {name: part.num_examples for name, part in sorted(builder.info.splits.items())}
    if sizes.get(split) == 0:
        raise UserError(f"the {split} split of {folder} is empty; the set was prepared without pictures")
    try:
        encoded = [key for key in (keys.image, keys.label_map) if key is not None]
        return builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding() for key in encoded})
    except NotImplementedError:
        raise UserError(
            f"{folder} is prepared as {builder.info.file_format}, which has no random access; "
            f"make an array_record copy: tfds convert_format --dataset_dir {folder} "
            "--out_file_format array_record --out_path DIR"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder} has no split {split!r} ({error}); its splits are {sizes}") from None


def _objects(sequence: Any) -> Example:
    """Boxes and labels of TFDS's sequence, whose boxes are top, left, bottom, right."""
    boxes = np.asarray(sequence["bbox"], np.float32).reshape(-1, 4)
    return {"boxes": boxes[:, [1, 0, 3, 2]], "box_labels": np.asarray(sequence["label"], np.int64).reshape(-1)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
