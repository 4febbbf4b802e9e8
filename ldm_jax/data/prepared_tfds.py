"""Any TFDS data set that is prepared on this machine, by its name or its folder, read without its code."""

import os
import re
from pathlib import Path
from typing import Any

from ldm_jax.config import DataConfig, PreparedTfds
from ldm_jax.data.preparation import digest, file_sha256, import_tfds
from ldm_jax.data.records import Keys, RecordSource, open_records
from ldm_jax.data.source import Split
from ldm_jax.errors import UserError

_INFO_FILE = "dataset_info.json"


def open_source(config: DataConfig, split: Split) -> RecordSource:
    """Open a prepared set.

    Raises:
        UserError: it is not prepared, or lacks a split or a feature.
    """
    source = config.source
    assert isinstance(source, PreparedTfds)
    folder = find_prepared(source)
    tfds_split = source.train_split if split == "train" else source.test_split
    keys = _keys(import_tfds(), folder, source)
    name = source.name if folder != Path(source.name).expanduser() else f"{folder.parent.name}:{folder.name}"
    return open_records(folder, tfds_split, keys, name=name, split=split, fingerprint=fingerprint(folder))


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of the set's description and of the names and sizes of its files; their contents are not read."""
    sizes = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    return digest([file_sha256(folder / _INFO_FILE), sizes])


def find_prepared(source: PreparedTfds) -> Path:
    """The folder of the version that `source` names; the newest one if it names none.

    Raises:
        UserError: there is no such folder; the message lists what is prepared.
    """
    if not source.name:
        raise UserError(
            "PreparedTfds.name is empty; give the name or folder of a prepared set: --data.source.name NAME"
        )
    if _is_version(folder := Path(source.name).expanduser()):
        return folder
    root, (base, _, version) = _root(source), source.name.partition(":")
    if folder.is_absolute():
        root, base, version = folder.parent, folder.name, ""
    versions = [path for path in _versions(root, base) if version in ("", path.name)]
    if versions:
        return max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
    raise UserError(
        f"the TFDS data set {source.name!r} is not prepared in {root} ({_inventory(root)}). Prepare it where "
        f"TensorFlow is: tfds build {base} --file_format=array_record --data_dir {root}; or name another folder with "
        "--data.source.directory DIR"
    )


def _root(source: PreparedTfds) -> Path:
    own = source.directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(own).expanduser()


def _is_version(folder: Path) -> bool:
    return (folder / _INFO_FILE).is_file()


def _versions(root: Path, base: str) -> list[Path]:
    folders = (path.parent for path in root.glob(f"{base}/*/{_INFO_FILE}"))
    return [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]


def _inventory(root: Path) -> str:
    folders = [*_versions(root, "*"), *_versions(root, "*/*")]
    names = sorted(f"{folder.parent.relative_to(root).as_posix()}:{folder.name}" for folder in folders)
    return f"prepared there: {', '.join(names[:20])}" if names else "nothing is prepared there"


def _keys(tfds: Any, folder: Path, source: PreparedTfds) -> Keys:
    features = dict(tfds.builder_from_directory(folder).info.features.items())
    kinds = tfds.features
    _require(features, source.image_key, kinds.Image, "PreparedTfds.image_key", source.name)
    defaults = PreparedTfds()
    optional = {}
    for field, kind in (("label_key", kinds.ClassLabel), ("caption_key", kinds.Text)):
        key = getattr(source, field)
        if key != getattr(defaults, field):  # named by the user, so it has to be there
            _require(features, key, kind, f"PreparedTfds.{field}", source.name)
        optional[field] = key if isinstance(features.get(key), kind) else None
    objects_key = _objects_key(kinds, features, source)
    id_key = "id" if isinstance(features.get("id"), kinds.Text) else None
    return Keys(
        image=source.image_key,
        label=optional["label_key"],
        caption=optional["caption_key"],
        id=id_key,
        objects=objects_key,
    )


def _objects_key(kinds: Any, features: dict[str, Any], source: PreparedTfds) -> str | None:
    key, default = source.objects_key, PreparedTfds().objects_key
    if key != default:
        _require(features, key, kinds.Sequence, "PreparedTfds.objects_key", source.name)
    parts = dict(getattr(features.get(key), "feature", None) or {}) if key in features else {}
    fits = isinstance(parts.get("bbox"), kinds.BBoxFeature) and isinstance(parts.get("label"), kinds.ClassLabel)
    if key != default and not fits:
        raise UserError(f"PreparedTfds.objects_key={key!r} has to hold bbox and label; it holds {', '.join(parts)}")
    return key if fits else None


def _require(features: dict[str, Any], key: str, kind: type, field: str, name: str) -> None:
    present = ", ".join(f"{feature} ({type(features[feature]).__name__})" for feature in features)
    if key not in features:
        raise UserError(f"{field}={key!r}: the data set {name} has no such feature; it has {present}")
    if not isinstance(features[key], kind):
        raise UserError(
            f"{field}={key!r} has to be a feature of type {kind.__name__}; the data set {name} has {present}"
        )
