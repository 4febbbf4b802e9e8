"""Long sampling from the shell: killed half-way and continued it ends with the same files as one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest
from quick_compilation import QUICK
from test_session import make_session

from ldm_jax.pictures import read_picture
from ldm_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
COUNT = 3000


@pytest.fixture(scope="module")
def run(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny model of text."""
    session = make_session(data_cache)
    run = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    run.open(session.experiment)
    run.write_manifest(session.experiment, {"class_names": [], "credit": "by nobody"})
    run.save_tokenizers(session.tokenizers)
    checkpoints = run.checkpoints("diffusion")
    checkpoints.save(1, {"model": session.params, "training": {"step": jnp.asarray(1)}})
    checkpoints.wait()
    return run.path


@pytest.fixture(autouse=True)
def interrupts_are_heeded() -> Iterator[None]:
    """A shell has what it starts in the background ignore them, and so do the programs that this starts in turn."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def start(run: Path, *flags: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "sample.py", *((str(run),) if run.is_dir() else ()), *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.endswith(".png")}


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_it_goes_on_and_ends_the_same(run: Path, tmp_path: Path, sent: signal.Signals):
    flags = ("--prompt", "a red circle", "--num-samples", str(COUNT), "--batch-size", "8", "--num-sample-steps", "2")
    parts = tmp_path / "parts"
    process = start(run, *flags, "--out", str(parts))
    deadline = time.monotonic() + 300
    while len(list(parts.glob("*_*.png"))) < 100 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "it was through before the signal"
    process.send_signal(sent)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (130 if sent == signal.SIGINT else -sent), said
    found = len(list(parts.glob("*_*.png")))
    assert 100 <= found < COUNT
    assert ("the same command goes on with the rest" in said) is (sent == signal.SIGINT)
    for folder in (parts, tmp_path / "whole"):
        process = start(run, *flags, "--out", str(folder))
        said = process.communicate(timeout=500)[1].decode()
        assert process.returncode == 0, said
    assert len(list(parts.glob("*_*.png"))) == COUNT
    assert contents(parts) == contents(tmp_path / "whole")


def test_a_picture_is_drawn_again_from_the_shell(run: Path, tmp_path: Path):
    process = start(run, "--prompt", "a (red:1.3) circle", "--num-samples", "3", "--out", str(tmp_path / "out"))
    assert process.wait(timeout=200) == 0
    file = tmp_path / "out" / "a-red-1-3-circle_seed0_0001.png"
    process = start(tmp_path / "none", "--again", str(file), "--out", str(tmp_path))
    said = process.communicate(timeout=200)[1].decode()
    assert process.returncode == 0, said
    again = read_picture(tmp_path / f"{file.stem}-again.png")
    assert (again[0] == read_picture(file)[0]).all()
    assert again[1] == read_picture(file)[1]
