"""The two commands of the README, from the shell, on the shipped `smoke` experiment: train, draw, go on.

Kills and signals, at any moment: tests/test_exact_resume.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from quick_compilation import QUICK

from ldm_jax.config import load_experiment, restore_experiment
from ldm_jax.model import hash_params
from ldm_jax.sampling.session import load_session
from ldm_jax.training.logging import read_metrics

ROOT = Path(__file__).parent.parent
TIMES = ("seconds_per_step", "images_per_second", "images_per_second_per_device", "input_wait")


@pytest.fixture(scope="module")
def environment(data_cache: Path) -> dict[str, str]:
    """Data of its own, the compilation cache of all, and one device, whose programs compile quickest."""
    return os.environ | {"LDM_JAX_CACHE": str(data_cache), "XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": "1"}


def call(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def trained(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `smoke` run."""
    path = tmp_path_factory.mktemp("runs") / "smoke"
    ended = call(environment, "train.py", "smoke", "--run-dir", str(path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert f"pictures are in {path}/samples" in ended.stderr
    return path


def test_training_leaves_a_run_folder(trained: Path):
    assert restore_experiment(trained / "config.json") == load_experiment("smoke")
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["command"][1:] == ["smoke", "--run-dir", str(trained)]
    assert manifest["data"]["train"]["num_pictures"] == 64
    assert len(list((trained / "tensorboard").rglob("events*"))) == 2
    for name in ("loss", "samples/reconstruction_000020", "samples/samples_000020", "samples/heldout"):
        Image.open(trained / f"{name}.png").verify()
    for stage in ("autoencoder", "diffusion"):
        folder = trained / "checkpoints" / stage
        assert sorted(p.name for p in folder.glob("*.json")) == ["00000010.json", "00000020.json"]


def test_training_learns(trained: Path):
    for stage in ("autoencoder", "diffusion"):
        losses = [m["heldout_loss"] for m in metrics(trained) if m["stage"] == stage and "heldout_loss" in m]
        assert len(losses) == 2
        assert losses[1] < losses[0]


def test_sampling_writes_pictures_and_says_where(trained: Path, environment: dict[str, str], tmp_path: Path):
    flags = ["--prompt", "a red circle", "--num-samples", "2", "--out", str(tmp_path), "--json"]
    ended = call(environment, "sample.py", str(trained), *flags)
    assert ended.returncode == 0, ended.stderr
    files = [Path(file) for file in json.loads(ended.stdout)["files"]]
    assert sorted([*files, tmp_path / "manifest.json"]) == sorted(tmp_path.iterdir())
    pictures = [Image.open(file) for file in files]
    assert [picture.size for picture in pictures[:2]] == [(16, 16)] * 2
    assert [picture.info["prompt"] for picture in pictures[:2]] == ["a red circle"] * 2
    assert len(files) == 3


def test_the_same_command_again_does_nothing_and_says_so(trained: Path, environment: dict[str, str]):
    before = digest(trained)
    began = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    ended = call(environment, "train.py", "smoke", "--run-dir", str(trained))
    assert ended.returncode == 0, ended.stderr
    assert f"{trained} is finished: trained for 20 steps" in ended.stderr
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == began
    assert digest(trained) == before


def test_bad_input_ends_with_one_line_and_status_2(trained: Path, environment: dict[str, str]):
    ended = call(environment, "train.py", "smoke", "--run-dir", str(trained), "--seed", "1")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith(f"error: {trained} holds a run with another configuration:\n  seed: 0 -> 1\n")


@pytest.mark.slow
def test_a_damaged_final_checkpoint_is_trained_again_to_the_same_bits(
    trained: Path, environment: dict[str, str], tmp_path: Path
):
    run = tmp_path / "damaged"
    shutil.copytree(trained, run)
    folder = run / "checkpoints" / "diffusion" / "00000020"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    ended = call(environment, "train.py", "smoke", "--run-dir", str(run))
    assert ended.returncode == 0, ended.stderr
    assert f"{folder} is damaged: {largest.relative_to(folder)} has changed" in ended.stderr
    assert digest(run) == digest(trained)


def digest(run: Path) -> str:
    """SHA-256 over the model of a run's newest good checkpoint."""
    return hash_params(load_session(run).params)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
