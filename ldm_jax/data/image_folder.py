"""A folder of pictures as a data set (`folder_scan` says how it is read).

The prepared copy holds the pictures cut to the configured size, or whole at the size from which training cuts them,
with the size that they had. It belongs to the names, sizes and times of the files: when the folder changes, another
copy is made.
"""

import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ldm_jax.config import DataConfig, ImageFolder
from ldm_jax.data.folder_scan import Scan, read_captions, scan_folder
from ldm_jax.data.local_builder import LocalBuilder, LocalInfo
from ldm_jax.data.pictures import UnreadablePicture, fit_square, open_picture, shrink
from ldm_jax.data.preparation import prepare, prepared_fingerprint
from ldm_jax.data.records import Keys, RecordSource, open_records
from ldm_jax.data.source import Split
from ldm_jax.errors import UserError

MIN_READABLE = 0.9
"""Share of the pictures of a split that has to be readable."""
_VERSION = "1.0.0"
_REPORT = "report.json"
_MAX_LISTED = 20
_log = logging.getLogger(__name__)


def open_source(config: DataConfig, split: Split) -> RecordSource:
    """Prepare the pictures of a folder at the configured size, or find them prepared; name those that were left out.

    Raises:
        UserError: the folder or the split has no pictures, too many cannot be read, or a caption file is wrong.
    """
    source = config.source
    assert isinstance(source, ImageFolder)
    scan = scan_folder(Path(source.directory).expanduser(), source.test_fraction)
    if not scan.splits[split]:
        raise UserError(
            f"the {split} split of {scan.directory} is empty: it has {len(scan.splits['train'])} pictures to train and "
            f"{len(scan.splits['test'])} to test; add a folder {split}/ or change "
            f"--data.source.test-fraction={source.test_fraction}"
        )
    form = _form(config)
    key = f"image_folder-{_VERSION}-{scan.fingerprint[:16]}-{form.name}"
    folder = prepare(key, lambda data_dir: ImageFolderBuilder(scan, form, data_dir), config.cache_dir)
    _warn(scan.directory, json.loads((folder / _REPORT).read_text()))
    return open_records(
        *(folder, split, _keys(scan, form)),
        name=scan.directory.name,
        split=split,
        fingerprint=prepared_fingerprint(folder),
    )


class _Form(NamedTuple):
    """What is kept of a picture."""

    name: str
    fit: Callable[[Image.Image], Image.Image]
    shape: tuple[int | None, int | None, int]
    is_whole: bool
    """Whether more is kept than the centre square, and then with the size that the picture had."""


def _form(config: DataConfig) -> _Form:
    size, channels, side = config.image_size, config.image_channels, config.largest_side
    if not config.cuts_whole_pictures:
        square = partial(fit_square, size=size, channels=channels)
        return _Form(f"{size}px{channels}", square, (size, size, channels), is_whole=False)
    limit = None if config.resize == "keep" else side
    whole = partial(shrink, side=limit, channels=channels)
    return _Form(f"whole{limit or ''}px{channels}", whole, (None, None, channels), is_whole=True)


class ImageFolderBuilder(LocalBuilder, skip_registration=True):
    """The pictures of a folder in one form; what cannot be read is left out and written down."""

    name = "image_folder"
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, scan: Scan, form: _Form, data_dir: str) -> None:
        """Write below `data_dir`."""
        self.scan = scan
        self.form = form
        self.skipped: list[str] = []
        self.without_caption: list[str] = []
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        size = tfds.features.Tensor(shape=(2,), dtype=np.int32)
        features = {
            "image": tfds.features.Image(shape=self.form.shape, encoding_format="png"),
            "id": tfds.features.Text(),
            **({"original_size": size} if self.form.is_whole else {}),
            **({"caption": tfds.features.Text()} if self.scan.has_captions else {}),
            **({"label": tfds.features.ClassLabel(names=list(self.scan.class_names))} if self.scan.class_names else {}),
        }
        return LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        captions = read_captions(self.scan)
        return {
            split: self._generate_examples(pictures, captions)
            for split, pictures in self.scan.splits.items()
            if pictures
        }

    def _generate_examples(self, pictures: list[str], captions: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        skipped = []
        for name in pictures:
            try:
                picture = open_picture(self.scan.directory / name, name)
            except UnreadablePicture as error:
                skipped.append(str(error))
                continue
            size = {"original_size": picture.size[::-1]} if self.form.is_whole else {}
            yield name, {"image": self.form.fit(picture), "id": name} | size | self._notes(name, captions)
        _require_readable(self.scan.directory, skipped, len(pictures))
        self.skipped += skipped

    def _notes(self, name: str, captions: dict[str, str]) -> dict[str, Any]:
        notes: dict[str, Any] = {}
        if self.scan.has_captions:
            notes["caption"] = captions.get(name) or self.scan.caption_beside(name)
            if not notes["caption"]:
                self.without_caption.append(name)
        if self.scan.class_names:
            notes["label"] = self.scan.class_of(name)
        return notes

    def _post_download_and_prepare_hook(self) -> None:
        report = {"skipped": self.skipped, "without_caption": self.without_caption}
        (Path(self.data_path) / _REPORT).write_text(json.dumps(report, indent=1) + "\n")


def _require_readable(directory: Path, skipped: list[str], total: int) -> None:
    if total - len(skipped) < max(1, MIN_READABLE * total):
        raise UserError(
            f"{len(skipped)} of {total} pictures in {directory} cannot be read, which is too many: {_listed(skipped)}"
        )


def _warn(directory: Path, report: dict[str, list[str]]) -> None:
    skipped, bare = report["skipped"], report["without_caption"]
    if skipped:
        _log.warning("%d pictures in %s are left out: %s", len(skipped), directory, _listed(skipped))
    if bare:
        _log.warning("%d pictures in %s have no caption: %s", len(bare), directory, _listed(bare))


def _listed(reasons: list[str]) -> str:
    more = len(reasons) - _MAX_LISTED
    return "; ".join(reasons[:_MAX_LISTED]) + (f"; and {more} more" if more > 0 else "")


def _keys(scan: Scan, form: _Form) -> Keys:
    return Keys(
        caption="caption" if scan.has_captions else None,
        label="label" if scan.class_names else None,
        id="id",
        original_size="original_size" if form.is_whole else None,
    )
