"""Fashion-MNIST from its four idx files: 60,000 and 10,000 grey pictures of 28 x 28 pixels in 10 classes.

An idx file (Y. LeCun, THE MNIST DATABASE, "file formats") is big-endian: the magic number 0x00000800 + number of axes
for bytes, the length of each axis as uint32, then the bytes.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from ldm_jax.config import DataConfig, FashionMnist
from ldm_jax.data.local_builder import LocalBuilder, LocalInfo
from ldm_jax.data.pictures import from_array
from ldm_jax.data.preparation import digest, prepare, prepared_fingerprint
from ldm_jax.data.records import Keys, RecordSource, open_records
from ldm_jax.data.source import Split
from ldm_jax.errors import UserError

CLASS_NAMES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_VERSION = "1.0.0"
_PREFIXES = {"train": "train", "test": "t10k"}
_CREDIT = "Fashion-MNIST, Zalando SE, MIT licence"


def open_source(config: DataConfig, split: Split) -> RecordSource:
    """Prepare Fashion-MNIST from the configured folder, or find it prepared.

    Raises:
        UserError: an idx file is missing or damaged.
    """
    source = config.source
    assert isinstance(source, FashionMnist)
    directory = Path(source.directory).expanduser()
    files = {
        s: (find_idx(directory, p, "images", 3), find_idx(directory, p, "labels", 1)) for s, p in _PREFIXES.items()
    }
    sums = digest([[hashlib.sha256(_read(path)).hexdigest() for path in pair] for pair in files.values()])
    key = f"fashion_mnist-{_VERSION}-{sums[:16]}"
    folder = prepare(key, lambda data_dir: FashionMnistBuilder(files, data_dir), config.cache_dir)
    return open_records(
        *(folder, split, Keys(label="label", id="id")),
        name="fashion_mnist",
        split=split,
        fingerprint=prepared_fingerprint(folder),
        credit=_CREDIT,
    )


def find_idx(directory: Path, prefix: str, kind: str, axes: int) -> Path:
    """The idx file of a kind, gzipped or not.

    Raises:
        UserError: it is missing.
    """
    name = f"{prefix}-{kind}-idx{axes}-ubyte"
    for path in (directory / f"{name}.gz", directory / name, directory / f"{prefix}-{kind}.idx{axes}-ubyte"):
        if path.is_file():
            return path
    raise UserError(
        f"Fashion-MNIST is not in {directory}: there is no {name} nor {name}.gz; get it with "
        "`apt-get install dataset-fashion-mnist`, or name its folder with --data.source.directory DIR"
    )


def read_idx(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of bytes with a number of axes.

    Raises:
        UserError: it is not such a file, or is cut short.
    """
    data = _read(path, unpack=path.suffix == ".gz")
    magic, expected = int.from_bytes(data[:4], "big"), 0x0800 + axes
    if magic != expected:
        raise UserError(f"{path} is no idx file of bytes with {axes} axes: its magic number is {magic}, not {expected}")
    header = 4 + 4 * axes
    shape = tuple(int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))
    size = int(np.prod(shape, dtype=np.int64))
    if len(data) != header + size:
        raise UserError(
            f"{path} is damaged: shape {shape} needs {header + size} bytes, it has {len(data)}; get it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_pair(images: Path, labels: Path) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, " n"]]:
    """Read pictures with their classes.

    Raises:
        UserError: a file is damaged, or the two do not belong together.
    """
    pictures, classes = read_idx(images, 3), read_idx(labels, 1)
    if len(pictures) != len(classes):
        raise UserError(f"{images} has {len(pictures)} pictures, but {labels} has {len(classes)} classes")
    if classes.size and classes.max() >= len(CLASS_NAMES):
        raise UserError(f"{labels} holds the class {classes.max()}; Fashion-MNIST has classes 0 to 9")
    return pictures, classes


def _read(path: Path, unpack: bool = False) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if unpack else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); get it again") from error


class FashionMnistBuilder(LocalBuilder, skip_registration=True):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017)."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, files: dict[str, tuple[Path, Path]], data_dir: str) -> None:
        """Write below `data_dir`."""
        self.files = files
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
            "id": tfds.features.Text(),
        }
        return LocalInfo(builder=self, features=tfds.features.FeaturesDict(features), license="MIT")

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split, *pair) for split, pair in self.files.items()}

    def _generate_examples(self, split: str, images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        pictures, classes = read_pair(images, labels)
        for i, (picture, label) in enumerate(zip(pictures, classes, strict=True)):
            yield i, {"image": from_array(picture[:, :, None]), "label": int(label), "id": f"{split}{i}"}
