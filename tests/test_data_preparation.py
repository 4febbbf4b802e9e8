"""A prepared set is whole or not there; the cache folder is where it is said to be."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm_jax.config import DataConfig, Shapes
from ldm_jax.data import preparation
from ldm_jax.data.preparation import default_cache_dir, is_whole, prepare, prepared_fingerprint, prepared_root
from ldm_jax.data.shapes import ShapesBuilder
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError


def shapes(data_dir: str) -> ShapesBuilder:
    return ShapesBuilder(4, 8, data_dir)


class Killed(BaseException):
    """What no handler catches."""


def dying(data_dir: str) -> ShapesBuilder:
    builder = shapes(data_dir)

    def generate(split, count):
        yield from ShapesBuilder._generate_examples(builder, split, 2)
        raise Killed

    builder._generate_examples = generate
    return builder


def test_cache_dir_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    assert prepared_root(None) == tmp_path / "own" / "data"
    monkeypatch.delenv("LDM_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "ldm_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "ldm_jax"
    assert prepared_root("~/d") == tmp_path / "d"


def test_a_set_is_prepared_once_and_alike(tmp_path):
    folder = prepare("set", shapes, str(tmp_path / "a"))
    assert is_whole(folder)

    def never(data_dir: str) -> None:
        raise AssertionError("it is there")

    assert prepare("set", never, str(tmp_path / "a")) == folder
    assert os.listdir(tmp_path / "a") == ["set"], "no temporary folder is left"
    other = prepare("set", shapes, str(tmp_path / "b"))
    assert prepared_fingerprint(folder) == prepared_fingerprint(other)


def test_a_preparation_that_dies_leaves_nothing(tmp_path):
    with pytest.raises(Killed):
        prepare("set", dying, str(tmp_path))
    assert os.listdir(tmp_path) == []
    assert is_whole(prepare("set", shapes, str(tmp_path)))


def test_of_two_that_prepare_at_once_both_get_the_set(tmp_path):
    def late(data_dir: str) -> ShapesBuilder:
        prepare("set", shapes, str(tmp_path))  # another process finishes while this one works
        return shapes(data_dir)

    folder = prepare("set", late, str(tmp_path))
    assert is_whole(folder) and os.listdir(tmp_path) == ["set"]


def test_a_damaged_set_is_made_again(tmp_path, caplog):
    folder = prepare("set", shapes, str(tmp_path))
    whole = prepared_fingerprint(folder)
    record = next(folder.glob("*train.array_record*"))
    record.write_bytes(record.read_bytes()[:100])
    assert not is_whole(folder)
    assert prepared_fingerprint(prepare("set", shapes, str(tmp_path))) == whole
    assert f"the prepared data set {folder} is damaged: it is made again" in caplog.text
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize("manifest", [None, "", "{}", '{"files": 3}'])
def test_without_a_manifest_a_set_is_not_whole(tmp_path, manifest):
    if manifest is not None:
        (tmp_path / "ldm_jax.json").write_text(manifest)
    assert not is_whole(tmp_path)


def test_leftovers_of_killed_processes_are_removed_after_a_day(tmp_path):
    for name, age in (("old", 2 * 86400), ("new", 60)):
        work = tmp_path / f".preparing-{name}"
        work.mkdir()
        (work / "part").write_text("x")
        for path in (work / "part", work):
            os.utime(path, (time.time() - age,) * 2)
    prepare("set", shapes, str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".preparing-new", "set"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write prepared data under .*file/data \(Not a directory\).*--data.cache-dir DIR"
    ):
        prepare("set", shapes, str(tmp_path / "file" / "data"))


def test_no_permission_is_answered_with_the_flag(tmp_path, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(preparation.tempfile, "mkdtemp", deny)
    with pytest.raises(UserError, match=r"\(Permission denied\); choose another folder with --data.cache-dir DIR"):
        prepare("set", shapes, str(tmp_path))


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation, "_generate", full)
    with pytest.raises(UserError, match="the disk is full"):
        prepare("set", shapes, str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_nothing_is_printed_and_tensorflow_is_not_imported(tmp_path, capfd):
    config = DataConfig(source=Shapes(num_examples=4), image_size=8, cache_dir=str(tmp_path))
    load_source(config, "train")[0]
    assert capfd.readouterr().out == ""
    assert "tensorflow" not in sys.modules


def test_importing_the_room_does_not_import_tfds():
    modules = [path.stem for path in Path(preparation.__file__).parent.glob("*.py")]
    light = sorted(
        set(modules) - {"shapes", "fashion_mnist", "openmoji", "scenes", "image_folder", "local_builder", "__init__"}
    )
    code = (
        "; ".join(f"import ldm_jax.data.{name}" for name in light)
        + "; import sys, json; print(json.dumps([*sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"tensorflow_datasets", "grain", "jax", "tensorflow"} & set(json.loads(out))


def test_a_small_file_that_changed_at_the_same_size_is_damage(tmp_path):
    folder = prepare("set", shapes, str(tmp_path))
    path = folder / "dataset_info.json"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_whole(folder)
