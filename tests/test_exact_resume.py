"""A run that is killed ends as if it had not been: same digest of everything, same metrics, at whatever moments.

These tests train for minutes in processes of their own. The moments are drawn from a seed, which is printed and can be
given back: LDM_JAX_KILL_SEED.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_run import NUM_KEPT, NUM_STEPS
from quick_compilation import QUICK

from ldm_jax.training.checkpoint_contents import digest_checkpoint
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.stopping import SAVED_AND_STOPPED

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
STAGES = ("autoencoder", "diffusion")
TIMES = ("seconds_per_step", "images_per_second", "images_per_second_per_device", "input_wait")
NUM_KILLS = int(os.environ.get("LDM_JAX_KILLS", "20"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def command(run: Path, data: Path, devices: int = 1, *crash: str) -> dict[str, Any]:
    """How the run is started, for subprocess."""
    arguments = [sys.executable, str(TESTS / "killed_run.py"), str(run), str(data), str(devices), *crash]
    path = f"{TESTS.parent}{os.pathsep}{TESTS}"
    flags = {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    return {"args": arguments, "env": os.environ | flags | {"LDM_JAX_CACHE": str(data)}, "text": True}


def finish(run: Path, data: Path, devices: int = 1) -> str:
    """Start the run, let it end, and return what it said."""
    ended = subprocess.run(**command(run, data, devices), capture_output=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def digests(run: Path) -> dict[str, str]:
    """The digest of the last checkpoint of each stage."""
    folder = RunFolder(run)
    for stage in STAGES:
        assert folder.checkpoints(stage).steps()[-1] == NUM_STEPS
        folder.checkpoints(stage).verify(NUM_STEPS)
    last = {stage: folder.checkpoints(stage).folder(NUM_STEPS) for stage in STAGES}
    return {
        stage: digest_checkpoint(path, NUM_STEPS, folder.examples_at(stage, NUM_STEPS)) for stage, path in last.items()
    }


def metrics(run: Path) -> list[dict[str, Any]]:
    """All lines, without what depends on the clock."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never disturbed."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    finish(run, data)
    return run


def assert_as_unbroken(run: Path, unbroken: Path) -> None:
    assert digests(run) == digests(unbroken)
    assert metrics(run) == metrics(unbroken)
    for stage in STAGES:
        found = RunFolder(run).checkpoints(stage)
        assert (len(found.steps()), found.unsealed()) == (NUM_KEPT, [])


def progress(run: Path) -> int:
    """Steps of both stages that are logged."""
    last = {line["stage"]: line["step"] for line in read_metrics(run / "metrics.jsonl")}
    return sum(last.values())


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written or deleted, or waits for its seal."""
    for folder in (run / "checkpoints").glob("*"):
        names = {path.name for path in folder.iterdir()}
        if any(not name.endswith(".json") and f"{name}.json" not in names for name in names):
            return True
    return False


def stop(run: Path, data: Path, number: int, until: Callable[[], bool], delay: float) -> tuple[int, str]:
    """Start the run, wait for a moment and a delay, and send it a signal; its exit status, and what was going on."""
    process = subprocess.Popen(**command(run, data), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while not until() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(number)
    status = process.wait(timeout=300)
    return status, f"at step {progress(run)}" + (" in mid-save" if is_saving(run) else "")


def test_a_run_killed_at_twenty_moments_ends_with_the_same_bits(unbroken: Path, data: Path, tmp_path: Path):
    seed = int(os.environ.get("LDM_JAX_KILL_SEED") or random.SystemRandom().randrange(10**6))
    draw = random.Random(seed)
    print(f"seed {seed}: LDM_JAX_KILL_SEED={seed}")
    run, hits = tmp_path / "run", []
    goals = sorted(draw.sample(range(2 * NUM_STEPS - 4), NUM_KILLS))
    for goal in goals:
        kind = draw.choice(["saving", "saving", "anywhere", "starting"])
        if kind == "starting":
            hit = stop(run, data, signal.SIGKILL, lambda: True, draw.uniform(0.0, 10.0))
        elif kind == "anywhere":
            hit = stop(run, data, signal.SIGKILL, lambda goal=goal: progress(run) > goal, draw.uniform(0.0, 0.2))
        else:
            now = lambda goal=goal: progress(run) > goal and is_saving(run)  # noqa: E731
            hit = stop(run, data, signal.SIGKILL, now, draw.uniform(0.0, 0.02))
        print(f"kill {len(hits) + 1} ({kind}): {hit[1]}", flush=True)
        assert hit[0] == -signal.SIGKILL, "it ended before it was killed"
        hits.append(hit[1] if kind == "saving" else "")
    assert sum("mid-save" in hit for hit in hits) >= NUM_KILLS // 10
    finish(run, data)
    assert_as_unbroken(run, unbroken)


def test_a_run_terminated_in_either_stage_ends_with_the_same_bits(unbroken: Path, data: Path, tmp_path: Path):
    run = tmp_path / "run"
    for goal in (NUM_STEPS // 3, NUM_STEPS + NUM_STEPS // 3):
        status, _ = stop(run, data, signal.SIGTERM, lambda goal=goal: progress(run) > goal, 0.0)
        assert status == SAVED_AND_STOPPED
        stage = STAGES[goal > NUM_STEPS]
        assert RunFolder(run).checkpoints(stage).steps()[-1] > goal % NUM_STEPS - 2
        assert not is_saving(run)
    finish(run, data)
    assert_as_unbroken(run, unbroken)


def test_a_run_that_crashes_while_it_saves_or_deletes_ends_with_the_same_bits(
    unbroken: Path, data: Path, tmp_path: Path
):
    run = tmp_path / "run"
    for when, stage, step in (("seal", "autoencoder", "10"), ("delete", "diffusion", "6")):
        ended = subprocess.run(**command(run, data, 1, when, stage, step), capture_output=True, timeout=600)
        assert ended.returncode == 9, ended.stderr
        assert RunFolder(run).checkpoints(stage).unsealed() == [int(step)]
    said = finish(run, data)
    assert re.search(r"checkpoint \S*diffusion/00000006 has no seal: .* it is removed", said)
    assert_as_unbroken(run, unbroken)
