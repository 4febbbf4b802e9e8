"""Checkpoints: what goes in comes out, on any mesh; what is damaged is noticed, named and replaced; none is dropped."""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from ldm_jax import sharding
from ldm_jax.config import MeshConfig
from ldm_jax.data import patience
from ldm_jax.errors import UserError
from ldm_jax.files.whole_files import file_checksum, write_atomically
from ldm_jax.training import seals
from ldm_jax.training.checkpoints import Checkpoints, DamagedCheckpoint, abstract_like
from ldm_jax.training.keep_policy import KeepPolicy


def items(value: float = 1.0) -> dict[str, Any]:
    """Trees as a run saves them: several dtypes, a scalar, nothing."""
    model = {
        "kernel": jnp.arange(64.0).reshape(8, 8) * value,
        "half": jnp.linspace(-3, 3, 16).astype(jnp.bfloat16) * value,
        "none": {},
    }
    return {"model": model, "training": {"step": jnp.asarray(7, jnp.int32), "counts": jnp.arange(5, dtype=jnp.int32)}}


def abstract(tree: Any = None) -> Any:
    """What is wanted, on the first device."""
    tree = items() if tree is None else tree
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return abstract_like(tree, jax.tree.map(lambda _: sharding.replicated(mesh), tree))


def saved(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    """Checkpoints whose items are multiples of their step."""
    checkpoints = Checkpoints(folder, KeepPolicy(newest=keep))
    for step in steps:
        checkpoints.save(step, items(step))
    checkpoints.wait()
    return checkpoints


def assert_equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def array_file(folder: Path) -> Path:
    """The largest file of a checkpoint: it holds array data."""
    return max((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """Checkpoints of steps 1 and 2."""
    return saved(tmp_path / "stage", 1, 2)


def test_what_is_saved_is_restored(tmp_path: Path):
    restored = saved(tmp_path, 3).restore_newest(abstract())
    assert restored is not None
    assert restored[0] == 3
    assert_equal(restored[1], items(3))


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "none", KeepPolicy(newest=2))
    assert checkpoints.restore_newest(abstract()) is None
    assert checkpoints.steps() == []
    checkpoints.remove_unfinished()
    checkpoints.wait()
    assert not (tmp_path / "none").exists()


def test_a_part_can_be_restored_alone(two: Checkpoints):
    restored = two.restore(2, {"model": abstract()["model"]})
    assert set(restored) == {"model"}
    assert_equal(restored["model"], items(2)["model"])
    restored = two.restore(2, {"model": {"half": abstract()["model"]["half"]}}, in_part=True)
    assert_equal(restored, {"model": {"half": items(2)["model"]["half"]}})


@pytest.mark.parametrize("layout", [{"data": 8}, {"data": 1, "fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_it_is_restored_onto_another_mesh(tmp_path: Path, layout: dict[str, int]):
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = jax.device_put(items(), jax.tree.map(lambda _: sharding.replicated(mesh), items()))
    split["model"]["kernel"] = jax.device_put(split["model"]["kernel"], NamedSharding(mesh, P("fsdp", "tensor")))
    checkpoints = Checkpoints(tmp_path, KeepPolicy(newest=1))
    checkpoints.save(1, split)
    checkpoints.wait()
    other = sharding.make_mesh(MeshConfig(**layout))
    shardings = jax.tree.map(lambda _: sharding.replicated(other), items())
    shardings["model"]["kernel"] = NamedSharding(other, P(None, "fsdp"))
    restored = checkpoints.restore(1, abstract_like(items(), shardings))
    assert restored["model"]["kernel"].sharding == shardings["model"]["kernel"]
    assert_equal(restored, items())


def test_only_the_newest_are_kept(tmp_path: Path):
    checkpoints = saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert checkpoints.steps() == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000003.json", "00000004", "00000004.json"]


def test_no_save_is_dropped_however_quickly_they_follow(tmp_path: Path):
    checkpoints = saved(tmp_path, *range(1, 6), keep=5)
    assert checkpoints.steps() == [1, 2, 3, 4, 5]
    for step in range(1, 6):
        assert_equal(checkpoints.restore(step, abstract()), items(step))


def test_arrays_may_be_overwritten_as_soon_as_save_returns(tmp_path: Path):
    state = jax.tree.map(jnp.copy, items())
    checkpoints = Checkpoints(tmp_path, KeepPolicy(newest=1))
    checkpoints.save(1, state)
    donated = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)(state)
    jax.block_until_ready(donated)
    checkpoints.wait()
    assert_equal(checkpoints.restore(1, abstract()), items())


def test_a_step_that_is_there_is_left_as_it_is(tmp_path: Path):
    checkpoints = saved(tmp_path, 1)
    checkpoints.save(1, items(5))
    checkpoints.wait()
    assert_equal(checkpoints.restore(1, abstract()), items(1))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda folder: flip_bit(array_file(folder)), "has changed since it was written"),
    "truncated": (lambda folder: array_file(folder).write_bytes(b"x"), "has changed since it was written"),
    "missing file": (lambda folder: array_file(folder).unlink(), "is missing"),
    "extra file": (lambda folder: (folder / "extra").write_text("x"), "extra does not belong to it"),
    "missing folder": (shutil.rmtree, "is missing"),
    "half a seal": (
        lambda folder: folder.with_suffix(".json").write_text('{"step": 2, "fi'),
        r"the seal \S*00000002.json cannot be read",
    ),
    "seal of something else": (
        lambda folder: folder.with_suffix(".json").write_text("[]"),
        r"the seal \S*00000002.json cannot be read",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_an_older_one_used(
    two: Checkpoints, name: str, caplog: pytest.LogCaptureFixture
):
    damage, message = DAMAGE[name]
    damage(two.directory / "00000002")
    with pytest.raises(DamagedCheckpoint, match=message):
        two.verify(2)
    with caplog.at_level(logging.WARNING):
        restored = two.restore_newest(abstract())
    assert restored is not None
    assert restored[0] == 1
    assert_equal(restored[1], items(1))
    assert re.search(f"{message}.*; looking for an older one", caplog.text)


def test_a_checkpoint_of_other_arrays_is_not_taken_for_this_one(two: Checkpoints):
    other = items()
    other["model"]["kernel"] = jnp.zeros((4, 4))
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint \S*00000002 cannot be read: .*\(4, 4\)"):
        two.restore(2, abstract(other))
    other["model"]["bias"] = other["model"].pop("kernel")
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint \S*00000002 cannot be read"):
        two.restore(2, abstract(other))


def test_if_all_are_damaged_the_run_is_refused(two: Checkpoints):
    for step in (1, 2):
        flip_bit(array_file(two.directory / f"{step:08d}"))
    message = (
        f"every checkpoint in {two.directory} is damaged (steps [1, 2]); restore the folder from a copy, "
        "or train into another folder with --run-dir"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        two.restore_newest(abstract())


def test_what_was_interrupted_does_not_count_and_is_removed(two: Checkpoints):
    (two.directory / "00000002.json").unlink()
    (two.directory / "00000003.orbax-checkpoint-tmp").mkdir()
    assert two.steps() == [1]
    restored = two.restore_newest(abstract())
    assert restored is not None
    assert restored[0] == 1
    two.remove_unfinished()
    assert sorted(p.name for p in two.directory.iterdir()) == ["00000001", "00000001.json"]


def test_an_interrupted_save_is_made_again(two: Checkpoints):
    (two.directory / "00000002.json").unlink()
    two.save(2, items(20))
    two.wait()
    assert_equal(two.restore(2, abstract()), items(20))


def test_a_damaged_checkpoint_is_written_again_when_training_gets_there(two: Checkpoints):
    flip_bit(array_file(two.directory / "00000002"))
    assert two.restore_newest(abstract()) is not None
    two.save(2, items(2))
    two.wait()
    assert_equal(two.restore(2, abstract()), items(2))


def test_a_damaged_checkpoint_does_not_crowd_out_a_good_one(tmp_path: Path):
    saved(tmp_path, 1, 4)
    flip_bit(array_file(tmp_path / "00000004"))
    checkpoints = Checkpoints(tmp_path, KeepPolicy(newest=1))
    assert checkpoints.restore_newest(abstract()) is not None
    checkpoints.save(2, items(2))
    checkpoints.wait()
    restored = Checkpoints(tmp_path, KeepPolicy(newest=1)).restore_newest(abstract())
    assert restored is not None
    assert restored[0] == 2


def test_a_checkpoint_that_cannot_be_read_now_is_passed_over_and_stays(
    two: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(path: Any, **_: Any) -> list[int]:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(patience, "_WAITS", ())
        patch.setattr(
            seals, "file_checksum", lambda p, **k: fail(p) if "00000002/" in str(p) else file_checksum(p, **k)
        )
        restored = two.restore_newest(abstract())
        assert restored is not None and restored[0] == 1
        assert "00000002" in caplog.text and "Stale file handle); looking for an older one" in caplog.text
    two.save(3, items(3))
    two.wait()
    assert two.steps() == [1, 2, 3]
    two.verify(2)


def test_too_little_memory_is_no_damage(two: Checkpoints, monkeypatch: pytest.MonkeyPatch):
    def exhausted(*_: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        patch.setattr(ocp, "load_checkpointables", exhausted)
        two.restore_newest(abstract())
    restored = two.restore_newest(abstract())
    assert restored is not None and restored[0] == 2


def test_a_clock_that_jumps_inside_a_save_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now, jumped = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + jumped[0])
    checkpoints = Checkpoints(tmp_path, KeepPolicy(newest=2))
    for step in (1, 2):
        large = {"model": {"kernel": jnp.ones((3000, 3000)) * step}, "training": items()["training"]}
        checkpoints.save(step, large)
        jumped[0] += 1e8  # three years, while it is written
        checkpoints.wait()
        checkpoints.verify(step)


def test_reading_changes_nothing(two: Checkpoints):
    flip_bit(array_file(two.directory / "00000002"))
    before = sorted(p.name for p in Path(two.directory).rglob("*"))
    two.restore_newest(abstract())
    assert sorted(p.name for p in Path(two.directory).rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints", KeepPolicy(newest=1))
    message = (
        rf"cannot write a checkpoint to {re.escape(str(checkpoints.directory))} \(.*Not a directory.*\); "
        "check the permissions and the free space, then run the same command again"
    )
    with pytest.raises(UserError, match=message):
        checkpoints.save(1, items())


def test_a_save_that_fails_later_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = Checkpoints(tmp_path, KeepPolicy(newest=1))

    def full(step: int, metrics: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_seal", full)
    checkpoints.save(1, items())
    with pytest.raises(UserError, match=r"cannot write a checkpoint to .* \(.*No space left on device.*\)"):
        checkpoints.wait()
    assert checkpoints.steps() == []
    checkpoints.wait()  # told once


def test_a_seal_tells_size_and_checksum_of_every_file(two: Checkpoints):
    folder = Path(two.directory / "00000001")
    seal = json.loads((two.directory / "00000001.json").read_text())
    assert seal["step"] == 1
    assert set(seal["files"]) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    for name, (size, _) in seal["files"].items():
        assert (folder / name).stat().st_size == size


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("killed here")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
