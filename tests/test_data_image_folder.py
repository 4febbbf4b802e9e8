"""A folder of pictures: splits, classes, captions, changes, and files that are not what they seem."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_jax.config import DataConfig, ImageFolder
from ldm_jax.data.folder_scan import scan_folder
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError


def put(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 12), (i, 100, 200)).save(path)
    return folder


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"{i:03}.png" for i in range(start, start + count)]


def load(folder: Path, cache: Path, split="train", fraction=0.0, size=8, channels=3):
    source = ImageFolder(directory=str(folder), test_fraction=fraction)
    config = DataConfig(source=source, image_size=size, image_channels=channels, cache_dir=str(cache / "cache"))
    return load_source(config, split)


def by_id(source):
    return {source[i]["id"]: source[i] for i in range(len(source))}


def test_class_folders(tmp_path):
    folder = put(tmp_path / "d", "cat/a.png", "dog/b.png", "dog/deep/c.jpg", "cat/.hidden.png")
    (folder / "cat" / "notes.md").write_text("no picture")
    source = load(folder, tmp_path)
    assert source.info.class_names == ("cat", "dog") and not source.info.has_captions
    assert {name: e["label"] for name, e in by_id(source).items()} == {
        "cat/a.png": 0,
        "dog/b.png": 1,
        "dog/deep/c.jpg": 1,
    }
    assert source.info.name == "d"
    assert all(e["image"].shape == (8, 8, 3) for e in by_id(source).values())


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["cat/a.png", "b.png"], ["images/a.png", "images/b.png"]])
def test_no_classes_without_two_folders_that_hold_all(tmp_path, names):
    source = load(put(tmp_path / "d", *names), tmp_path)
    assert not source.info.has_labels and source[0]["label"] == -1


@pytest.mark.parametrize(
    ("resize", "crop", "shape"),
    [(None, "random", (8, 9)), (10, "center", (10, 12)), ((8, 9), "random", (9, 10)), ("keep", "random", (20, 24))],
)
def test_pictures_that_training_cuts_are_kept_whole(tmp_path, resize, crop, shape):
    """They have 20 x 24 pixels, and no more is kept than is needed."""
    folder = tmp_path / "d"
    folder.mkdir()
    Image.new("RGB", (24, 20), (1, 100, 200)).save(folder / "a.png")
    data = DataConfig(source=ImageFolder(directory=str(folder), test_fraction=0.0), cache_dir=str(tmp_path / "cache"))
    example = load_source(dataclasses.replace(data, image_size=8, resize=resize, crop=crop), "train")[0]
    assert example["image"].shape == (*shape, 3)
    assert example["original_size"].tolist() == [20, 24]
    square = load_source(dataclasses.replace(data, image_size=8), "train")[0]
    assert square["image"].shape == (8, 8, 3) and "original_size" not in square


def test_grey_pictures(tmp_path):
    assert load(put(tmp_path / "d", "a.png"), tmp_path, channels=1)[0]["image"].shape == (8, 8, 1)


def test_captions_beside_pictures(tmp_path, caplog):
    folder = put(tmp_path / "d", "a.png", "b.png")
    (folder / "a.txt").write_text("\ufeff a red apple \n", "utf-8")
    source = load(folder, tmp_path)
    assert source.info.has_captions
    assert {name: e["caption"] for name, e in by_id(source).items()} == {"a.png": "a red apple", "b.png": ""}
    assert f"1 pictures in {folder} have no caption: b.png" in caplog.text


@pytest.mark.parametrize("key", ["text", "caption"])
def test_captions_from_metadata_come_first(tmp_path, key):
    folder = put(tmp_path / "d", "pics/a.png", "pics/b.png", "c.png")
    (folder / "pics" / "b.txt").write_text("beside")
    (folder / "pics" / "a.txt").write_text("beside")
    (folder / "pics" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", key: "Äpfel"}) + "\n\n")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "c.png", key: "see"}))
    captions = {name: e["caption"] for name, e in by_id(load(folder, tmp_path)).items()}
    assert captions == {"pics/a.png": "Äpfel", "pics/b.png": "beside", "c.png": "see"}


@pytest.mark.parametrize(
    "line, message",
    [
        ("not json", r"metadata.jsonl line 2 has to be like .*it is not json"),
        ('{"file_name": "a.png"}', "line 2 has to be like"),
        ('{"file_name": 3, "text": "x"}', "line 2 has to be like"),
        ('["a.png", "x"]', "line 2 has to be like"),
        ('{"file_name": "gone.png", "text": "x"}', "line 2 names gone.png, which is no picture of"),
    ],
)
def test_wrong_metadata_is_refused_by_line(tmp_path, line, message):
    folder = put(tmp_path / "d", "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        load(folder, tmp_path)


def test_a_caption_file_that_is_no_text_is_named(tmp_path):
    folder = put(tmp_path / "d", "a.png")
    (folder / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"the caption file .*a\.txt cannot be read as UTF-8 text"):
        load(folder, tmp_path)


def test_split_folders(tmp_path):
    folder = put(tmp_path / "d", "train/cat/a.png", "train/dog/b.png", "test/cat/a.png", "stray.png")
    train, test = load(folder, tmp_path), load(folder, tmp_path, "test")
    assert set(by_id(train)) == {"train/cat/a.png", "train/dog/b.png"} and set(by_id(test)) == {"test/cat/a.png"}
    assert train.info.class_names == test.info.class_names == ("cat", "dog")


def test_only_a_test_folder(tmp_path):
    folder = put(tmp_path / "d", "a.png", "test/b.png")
    assert set(by_id(load(folder, tmp_path, fraction=0.9))) == {"a.png"}
    assert set(by_id(load(folder, tmp_path, "test", fraction=0.9))) == {"test/b.png"}


def test_the_hash_split_is_stable_when_the_folder_grows(tmp_path):
    folder = put(tmp_path / "d", *numbered(60))
    before = scan_folder(folder, 0.3).splits
    put(folder, *numbered(40, start=60))
    after = scan_folder(folder, 0.3).splits
    assert 10 < len(before["test"]) < 30 and not set(before["test"]) & set(before["train"])
    assert set(before["test"]) < set(after["test"]) and set(before["train"]) < set(after["train"])


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"the test split of .*d is empty: it has 1 pictures to train and 0 to test; add a"
    ):
        load(put(tmp_path / "d", "a.png"), tmp_path, "test")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"the image folder .*gone does not exist; name another .*--data.source.directory"
    ):
        load(tmp_path / "gone", tmp_path)


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(UserError, match=r"there are no pictures in .*d; files that end in \.bmp \.gif"):
        load(tmp_path / "d", tmp_path)


def test_a_change_makes_another_copy(tmp_path):
    folder = put(tmp_path / "d", "a.png")
    prints = [load(folder, tmp_path).info.fingerprint]
    prints.append(load(folder, tmp_path).info.fingerprint)
    Image.new("RGB", (10, 12), "red").save(folder / "a.png")
    os.utime(folder / "a.png", ns=(1, 1))
    prints.append(load(folder, tmp_path).info.fingerprint)
    put(folder, "b.png")
    assert len(load(folder, tmp_path)) == 2
    (folder / "b.txt").write_text("words")
    assert load(folder, tmp_path).info.has_captions
    assert prints[0] == prints[1] != prints[2]


def test_odd_pictures_come_out_alike(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("CMYK", (9, 9)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (9, 9), "blue").quantize(2).save(folder / "palette.gif")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(folder / "clear.PNG")
    Image.new("RGB", (9, 5)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(folder / "tiny.bmp")
    source = load(folder, tmp_path)
    assert len(source) == 6
    assert all(e["image"].shape == (8, 8, 3) for e in by_id(source).values())
    assert by_id(source)["clear.PNG"]["image"].min() == 255


def damage(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:40])


def test_a_few_unreadable_pictures_are_left_out_and_named(tmp_path, caplog):
    folder = put(tmp_path / "d", *numbered(30))
    damage(folder, "003.png", "007.png")
    (folder / "004.png").unlink()
    (folder / "004.png").symlink_to(folder / "gone.png")
    for _ in range(2):  # said again when the set is found prepared
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = load(folder, tmp_path)
        assert len(source) == 27 and set(by_id(source)) == set(numbered(30)) - {"003.png", "004.png", "007.png"}
        lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
        assert len(lines) == 1 and lines[0].startswith(f"3 pictures in {folder} are left out: 003.png cannot be read")
        assert "004.png" in lines[0] and "007.png" in lines[0]


def test_too_many_unreadable_pictures_are_refused(tmp_path):
    folder = put(tmp_path / "d", *numbered(20))
    damage(folder, *numbered(3))
    message = r"3 of 20 pictures in .*d cannot be read, which is too many: 000\.png .*; 001\.png .*; 002\.png "
    with pytest.raises(UserError, match=message):
        load(folder, tmp_path)
    assert os.listdir(tmp_path / "cache") == []


def test_a_long_list_is_cut(tmp_path):
    folder = put(tmp_path / "d", *numbered(25))
    damage(folder, *numbered(25))
    with pytest.raises(UserError, match=r"25 of 25 pictures .*; and 5 more$"):
        load(folder, tmp_path)


def test_links_that_lead_in_a_circle_are_walked_once(tmp_path):
    folder = put(tmp_path / "d", "a/1.png", "b/2.png")
    (folder / "a" / "again").symlink_to(folder)
    assert len(load(folder, tmp_path)) == 2


def test_names_that_no_encoding_can_print_are_split_like_others(tmp_path):
    folder = put(tmp_path / "set", *numbered(30))
    for i in range(8):
        os.rename(folder / numbered(30)[i], os.fsencode(folder) + b"/\xff%d.png" % i)
    splits = scan_folder(folder, 0.3).splits
    names = [name for split in splits.values() for name in split]
    assert len(names) == 30
    assert sum(name.startswith("\udcff") for name in names) == 8
    assert scan_folder(folder, 0.3).splits == splits
