"""What a machine does to a run: each fault ends it with a message, and the same command then mends it to the bit.

The stage is the toy of test_loop; the disks are real ones, small and in memory, where the tests may mount them.
"""

import dataclasses
import errno
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from test_loop import CONFIG, Toy, assert_same, at

from ldm_jax import sharding
from ldm_jax.config import MeshConfig, TrainingConfig
from ldm_jax.errors import UserError
from ldm_jax.training import checkpoints
from ldm_jax.training.keep_policy import KeepPolicy

pytestmark = pytest.mark.slow  # kills, crashes and whole runs


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a few checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def toy(path: Path, config: TrainingConfig = CONFIG) -> Toy:
    return Toy(path, sharding.make_mesh(MeshConfig(), jax.devices()[:1]), config)


@pytest.fixture
def whole(tmp_path: Path) -> Toy:
    """A run that nothing happened to."""
    run = toy(tmp_path / "whole")
    run.run()
    return run


def restarted(run: Toy, whole: Toy) -> None:
    """The same command again, with nothing in its way."""
    run.change = lambda step, batch: batch
    assert_same(run.run(), whole.run())
    assert run.metrics() == whole.metrics()
    assert run.saved() == whole.saved()


def saved_first(run: Toy, act: Callable[[], object]) -> Callable[..., Any]:
    """Something that happens in step 3, when the checkpoint of step 2 is complete."""

    def happen(batch: Any) -> None:
        end = time.monotonic() + 60
        while run.saved() != [2]:
            assert time.monotonic() < end
            time.sleep(0.01)
        act()

    return at(4, happen)


def fill(disk: Path, left: int = 0) -> None:
    """Leave so many bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(file.tell() - left)


@pytest.mark.parametrize("left", [0, 3 * 4096])
def test_a_full_disk(small_disk: Path, whole: Toy, left: int):
    """Without any room the metrics cannot be written, with a little of it the checkpoint."""
    run = toy(small_disk / "run")
    run.change = saved_first(run, lambda: fill(small_disk, left))
    with pytest.raises(UserError, match=r"cannot write .* \(.*No space left on device.*\); .* run the same command"):
        run.run()
    assert run.saved() == [2]
    with pytest.raises((UserError, OSError), match="No space left on device"):
        run.run()  # it is still full
    assert run.saved() == [2]
    (small_disk / "filler").unlink()
    restarted(run, whole)


def test_a_folder_that_becomes_read_only(small_disk: Path, whole: Toy):
    def make_read_only() -> None:
        for options in (["--bind"], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *options, str(small_disk), str(small_disk)], check=True)

    run = toy(small_disk / "run")
    run.change = saved_first(run, make_read_only)
    try:
        with pytest.raises(UserError, match=r"cannot write a checkpoint to .* \(.*Read-only file system.*\)"):
            run.run()
        assert run.saved() == [2]
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
    restarted(run, whole)


def test_checkpoints_that_vanish_in_mid_run_are_written_again(tmp_path: Path, whole: Toy):
    run = toy(tmp_path / "run")
    run.change = saved_first(run, lambda: shutil.rmtree(run.path / "checkpoints"))
    assert_same(run.run(), whole.run())
    assert run.saved() == [4, 6]
    assert run.metrics() == whole.metrics()


def test_a_run_folder_that_vanishes_in_mid_run_is_noticed_at_the_next_checkpoint(tmp_path: Path, whole: Toy):
    run = toy(tmp_path / "run")
    run.change = saved_first(run, lambda: shutil.rmtree(run.path))
    with pytest.raises(UserError, match=r"cannot write \S*metrics.jsonl \(it has vanished\)"):
        run.run()
    restarted(run, whole)  # from the start: what vanished is gone


def test_a_checkpoint_that_vanishes_while_it_is_sealed_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = toy(tmp_path / "run")
    seal = checkpoints.seal_files

    def vanish(folder: Any) -> dict[str, list[int]]:
        if folder.name == "00000004":
            shutil.rmtree(folder)
        return seal(folder)

    monkeypatch.setattr(checkpoints, "seal_files", vanish)
    with pytest.raises(UserError, match=r"cannot write a checkpoint to .*00000004 has vanished while it was written"):
        run.run()
    assert run.saved() == [2]


@pytest.mark.parametrize("jump", [-(10**8), 10**8])
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, whole: Toy, monkeypatch: pytest.MonkeyPatch, jump: int):
    now, jumped = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: now() + jumped[0])
    run = toy(tmp_path / "run")

    def set_clock(batch: Any) -> None:
        jumped[0] += jump

    run.change = at(3, set_clock)
    assert_same(run.run(), whole.run())
    assert run.metrics() == whole.metrics()
    assert run.saved() == [4, 6]
    found = run.run()  # and what was saved in the future, or long ago, is still the newest
    assert int(found.step) == CONFIG.num_steps


def failing(error: Exception) -> Callable[[Any], None]:
    def fail(batch: Any) -> None:
        raise error

    return fail


def test_data_that_fail_end_the_run_with_what_is_saved_kept(tmp_path: Path, whole: Toy):
    run = toy(tmp_path / "run")
    run.change = at(5, failing(UserError("record 7 of pictures/train cannot be read after 4 tries")))
    with pytest.raises(UserError, match="record 7 of pictures/train cannot be read after 4 tries"):
        run.run()
    assert run.saved() == [2]
    restarted(run, whole)


def test_a_crash_in_mid_save_costs_the_steps_since_the_one_before(
    tmp_path: Path, whole: Toy, monkeypatch: pytest.MonkeyPatch
):
    run = toy(tmp_path / "run")
    write = checkpoints.write_seal

    def crash(path: Any, seal: Any) -> None:
        if seal.step == 4:
            raise MemoryError("killed here")
        write(path, seal)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=re.escape("(killed here)")):
        patch.setattr(checkpoints, "write_seal", crash)
        run.run()
    assert run.saved() == [2]
    restarted(run, whole)


def test_the_best_is_kept_though_it_is_old(tmp_path: Path):
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 5.0, 10: 4.0}

    @dataclasses.dataclass
    class Measured(Toy):
        def _evaluate(self, state: Any) -> dict[str, float]:
            return {"heldout_loss": losses[int(state.step)]}

    config = dataclasses.replace(CONFIG, num_steps=10, eval_every=100, keep_checkpoints=1, keep_best=1, keep_every=6)
    run = Measured(tmp_path / "run", sharding.make_mesh(MeshConfig(), jax.devices()[:1]), config)
    run.run()
    assert run.saved() == [4, 6, 10]
    found = [line["step"] for line in run.metrics() if "heldout_loss" in line]
    assert found == [2, 4, 6, 8, 10]  # each checkpoint is measured
    assert run.stage().training.keep_best == KeepPolicy.of(config).best
