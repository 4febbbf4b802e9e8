"""TFDS sets prepared elsewhere are found by name or folder; what is missing is named with what is there."""

import json
from pathlib import Path

import numpy as np
import pytest

from ldm_jax.config import DataConfig, PreparedTfds
from ldm_jax.data.shapes import SHAPES, ShapesBuilder
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    ShapesBuilder(20, 8, str(root)).download_and_prepare(file_format="array_record")
    return root


def load(data_dir, split="train", **fields):
    options = {"name": "shapes", "directory": str(data_dir), "label_key": "shape"} | fields
    return load_source(DataConfig(source=PreparedTfds(**options), image_size=8), split)


@pytest.mark.parametrize("name", ["shapes", "shapes:1.0.0", "{}/shapes/1.0.0", "{}/shapes"])
def test_found_by_name_or_folder(data_dir, name):
    source = load(data_dir, name=name.format(data_dir))
    assert len(source) == 20 and source.info.class_names == SHAPES and source.info.has_captions
    example = source[0]
    assert example["image"].shape == (8, 8, 3) and example["image"].dtype == np.uint8
    assert example["caption"].endswith(SHAPES[example["label"]]) and example["id"].startswith("train")


def test_found_through_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(load(data_dir, directory=None)) == 20


def test_splits_in_slicing_syntax(data_dir):
    train, test = (
        load(data_dir, split, train_split="train[:75%]", test_split="train[75%:]") for split in ("train", "test")
    )
    assert (train.info.split, test.info.split) == ("train", "test")
    assert (len(train), len(test)) == (15, 5) and train.info.fingerprint != test.info.fingerprint
    assert {train[i]["id"] for i in range(15)}.isdisjoint(test[i]["id"] for i in range(5))


def test_parts_that_are_not_asked_for_may_be_missing(data_dir):
    source = load(data_dir, label_key="label")
    assert not source.info.has_labels and source[0]["label"] == -1


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"image_key": "picture"},
            r"PreparedTfds.image_key='picture': the data set shapes has no such feature; it has .*image \(Image\)",
        ),
        ({"image_key": "caption"}, r"image_key='caption' has to be a feature of type Image; .*caption \(Text\)"),
        ({"label_key": "klass"}, "PreparedTfds.label_key='klass': .* has no such feature"),
        ({"caption_key": "shape"}, "PreparedTfds.caption_key='shape' has to be a feature of type Text"),
        ({"train_split": "dev"}, r"has no split 'dev' .*its splits are \{'test': 2, 'train': 20\}"),
        ({"name": ""}, "PreparedTfds.name is empty; .*--data.source.name NAME"),
        (
            {"name": "cifar10"},
            r"'cifar10' is not prepared in .* \(prepared there: shapes:1\.0\.0\)\. "
            r".*tfds build cifar10 --file_format=array_record --data_dir",
        ),
        ({"name": "shapes:2.0.0"}, r"'shapes:2\.0\.0' is not prepared"),
        ({"name": "/no/such/folder"}, "'/no/such/folder' is not prepared in /no/such .nothing is prepared there"),
    ],
)
def test_what_is_missing_is_named(data_dir, fields, message):
    with pytest.raises(UserError, match=message):
        load(data_dir, **fields)


def test_nothing_prepared(tmp_path):
    with pytest.raises(UserError, match=r"nothing is prepared there\).*--data.source.directory DIR"):
        load(tmp_path)


def test_a_format_without_random_access_is_refused(data_dir, tmp_path):
    import shutil

    folder = tmp_path / "shapes" / "1.0.0"
    shutil.copytree(data_dir / "shapes" / "1.0.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        UserError, match=r"no random access; make an array_record copy: tfds convert_format --dataset_dir"
    ):
        load(tmp_path)
