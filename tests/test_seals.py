"""Seals: whatever happens to a file of a checkpoint, or to the seal itself, is noticed and named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm_jax.data import patience
from ldm_jax.files.whole_files import file_checksum
from ldm_jax.training import seals
from ldm_jax.training.seals import (
    DamagedCheckpoint,
    Seal,
    UnreadableCheckpoint,
    check_files,
    read_seal,
    seal_files,
    write_seal,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something like a checkpoint: files of several sizes in folders, one of them empty, and its seal beside it."""
    root = tmp_path_factory.mktemp("whole")
    folder = root / "00000002"
    numbers = np.random.default_rng(0)
    for name, size in {"_META": 40, "model/d/a": 3000, "model/m": 90, "training/d/b": 700, "empty": 0}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(numbers.bytes(size))
    write_seal(root / "00000002.json", Seal(step=2, files=seal_files(folder), metrics={"heldout_loss": 0.25}, time=1e9))
    return root


def check(root: Path) -> None:
    check_files(root / "00000002", read_seal(root / "00000002.json", 2))


def test_a_seal_is_read_as_it_was_written(whole: Path):
    seal = read_seal(whole / "00000002.json", 2)
    assert (seal.step, seal.metrics, seal.time) == (2, {"heldout_loss": 0.25}, 1e9)
    assert seal.size == 3830
    assert list(seal.files) == ["_META", "empty", "model/d/a", "model/m", "training/d/b"]
    check(whole)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_named(whole: Path, tmp_path: Path, data: st.DataObject):
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    root = Path(shutil.copytree(whole, tmp_path / "copy"))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files), label="file")
    content = bytearray(path.read_bytes())
    kinds = ["flip", "truncate"] if content else []
    kind = data.draw(st.sampled_from([*kinds, "append", "delete"]), label="kind")
    if kind == "flip":
        place = data.draw(st.integers(0, 8 * len(content) - 1), label="bit")
        content[place // 8] ^= 1 << place % 8
    elif kind == "truncate":
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    elif kind == "append":
        content += b"}"
    path.unlink()
    if kind != "delete":
        path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint) as caught:
        check(root)
    assert (str(path) if path.suffix == ".json" else str(path.relative_to(root / "00000002"))) in str(caught.value)


@given(gone=st.sets(st.sampled_from(["_META", "model/d/a", "model/m", "training/d/b", "empty"]), min_size=1))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_half_deleted_checkpoint_is_named(whole: Path, tmp_path: Path, gone: set[str]):
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    root = Path(shutil.copytree(whole, tmp_path / "copy"))
    for name in gone:
        (root / "00000002" / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"00000002 is damaged: {min(gone)} is missing"):
        check(root)


def test_sizes_can_be_compared_alone(whole: Path, tmp_path: Path):
    root = Path(shutil.copytree(whole, tmp_path / "copy"))
    path = root / "00000002" / "model" / "m"
    path.write_bytes(bytes(90))
    check_files(root / "00000002", read_seal(root / "00000002.json", 2), contents=False)
    path.write_bytes(bytes(89))
    with pytest.raises(DamagedCheckpoint, match="model/m has changed since it was written"):
        check_files(root / "00000002", read_seal(root / "00000002.json", 2), contents=False)


def test_a_file_that_the_disk_does_not_give_back_is_tried_again(whole: Path, monkeypatch: pytest.MonkeyPatch):
    tries: list[Path] = []

    def fail(path: Path, *, sync: bool = False) -> list[int]:
        tries.append(path)
        if len(tries) > 4:
            return file_checksum(path)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(patience, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(seals, "file_checksum", fail)
    with pytest.raises(UnreadableCheckpoint, match=r"_META cannot be read after 4 tries \(.*Input/output error\)"):
        check(whole)
    check(whole)


def test_a_seal_of_another_step_is_not_taken_for_this_one(whole: Path, tmp_path: Path):
    shutil.copy(whole / "00000002.json", tmp_path / "00000003.json")
    with pytest.raises(DamagedCheckpoint, match=r"the seal \S*00000003.json cannot be read: it belongs to step 2"):
        read_seal(tmp_path / "00000003.json", 3)


def test_a_metric_that_was_changed_by_hand_is_noticed(whole: Path, tmp_path: Path):
    (tmp_path / "s.json").write_text((whole / "00000002.json").read_text().replace("0.25", "0.24"))
    with pytest.raises(DamagedCheckpoint, match=r"s\.json cannot be read: it has changed since it was written"):
        read_seal(tmp_path / "s.json", 2)


def test_a_seal_of_the_first_runs_has_no_checksum_of_its_own(tmp_path: Path):
    (tmp_path / "s.json").write_text(json.dumps({"step": 2, "files": {"a": [3, 5]}}))
    assert read_seal(tmp_path / "s.json", 2) == Seal(step=2, files={"a": [3, 5]})


@pytest.mark.parametrize("files", [[], {"a": 3}, {"a": [1, 2, 3]}, {"a": ["x", 1]}, None])
def test_a_seal_of_another_form_is_no_seal(tmp_path: Path, files: Any):
    (tmp_path / "s.json").write_text(json.dumps({"step": 2, "files": files}))
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        read_seal(tmp_path / "s.json", 2)


def test_deeply_nested_brackets_are_no_seal(tmp_path: Path):
    (tmp_path / "s.json").write_text("[" * 100_000)
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        read_seal(tmp_path / "s.json", 2)


def test_a_folder_that_vanished_gets_no_seal(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="gone has vanished while it was written"):
        seal_files(tmp_path / "gone")
