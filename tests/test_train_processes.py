"""The commands on two processes with a device each, against one process with two: the same bits from any start.

The run is `small_run.py`, with text and both stages; each command is `ldm` itself, started by `ldm launch`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_compilation import QUICK

from ldm_jax.pictures import read_picture
from ldm_jax.training.checkpoint_contents import digest_checkpoint
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SMALL = str(ROOT / "tests" / "small_run.py")
TIMES = ("seconds_per_step", "images_per_second", "images_per_second_per_device", "input_wait")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set of all runs here is prepared."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ldm(cache: Path) -> Callable[..., str]:
    """`ldm` with arguments, on so many processes; the last line on stdout, where Gloo writes too."""

    def call(*arguments: str, processes: int = 1, steps: int = 20) -> str:
        launch = ["launch", "--processes", str(processes), "--"] if processes > 1 else []
        program = [sys.executable, "-c", "from ldm_jax.cli import main; main()", *launch, *arguments]
        own = {"PYTHONPATH": str(ROOT), "LDM_JAX_CACHE": str(cache), "SMALL_STEPS": str(steps)}
        own |= {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu"}
        environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | own
        ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr
        return "".join(ended.stdout.splitlines()[-1:])

    return call


@pytest.fixture(scope="module")
def one(ldm: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with two devices."""
    run = tmp_path_factory.mktemp("one") / "run"
    ldm("train", SMALL, "--run-dir", str(run))
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def digest(run: Path) -> str:
    folder = RunFolder(run)
    step = folder.checkpoints("diffusion").steps()[-1]
    return digest_checkpoint(folder.checkpoints("diffusion").folder(step), step, folder.examples_at("diffusion", step))


def assert_same_run(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    assert digest(run) == digest(other)


def test_both_stages_come_to_the_bits_of_one_process(ldm: Callable[..., str], one: Path, tmp_path: Path):
    ldm("train", SMALL, "--run-dir", str(tmp_path / "run"), processes=2)
    assert_same_run(tmp_path / "run", one)
    assert len([line for line in metrics(one) if "loss" in line]) == 40
    names = [sorted(path.name for path in run.glob("samples/*")) for run in (one, tmp_path / "run")]
    assert names[0] == names[1] != []


@pytest.mark.parametrize("flag", ["--first-stage.run", "--start"])
def test_a_run_that_starts_from_another_model(ldm: Callable[..., str], one: Path, tmp_path: Path, flag: str):
    model = one
    if flag == "--start":  # from weights of another system
        model = tmp_path / "pipeline"
        ldm("convert", str(one), str(model), "--to", "diffusers")
    flags = [flag, str(model)]
    for name, processes in (("alone", 1), ("together", 2)):
        ldm("train", SMALL, "--run-dir", str(tmp_path / name), *flags, processes=processes, steps=2)
    assert_same_run(tmp_path / "together", tmp_path / "alone")
    assert {line["stage"] for line in metrics(tmp_path / "alone")} == {"diffusion"}


def test_pictures_are_those_of_one_process(ldm: Callable[..., str], one: Path, tmp_path: Path):
    flags = ["--prompt", "red circle", "--num-samples", "3", "--batch-size", "2", "--mesh.data", "2", "--json"]
    alone = json.loads(ldm("sample", str(one), *flags, "--out", str(tmp_path / "alone")))["files"]
    command = ["sample", str(one), *flags, "--out", str(tmp_path / "together")]
    together = json.loads(ldm(*command, processes=2))["files"]
    assert [Path(file).name for file in together] == [Path(file).name for file in alone]
    for file, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(read_picture(Path(file))[0], read_picture(Path(other))[0])
    Path(together[0]).unlink()
    assert json.loads(ldm(*command, processes=2))["files"] == together  # what is missing is drawn again
    np.testing.assert_array_equal(read_picture(Path(together[0]))[0], read_picture(Path(alone[0]))[0])


@pytest.fixture
def network(tmp_path: Path) -> list[str]:
    """Flags of a small CLIP with random weights."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, patch_size=4, image_size=16, projection_dim=8)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    return ["--network", "clip", "--weights", str(tmp_path / "clip")]


def assert_same_scores(ldm: Callable[..., str], run: Path, flags: list[str], folder: Path) -> None:
    """Of `ldm evaluate` on one process and on two."""

    def scores(processes: int) -> list[dict[str, Any]]:
        out = ["--out", str(folder / str(processes)), "--json"]
        return json.loads(ldm("evaluate", str(run), *flags, *out, processes=processes))["results"]["scores"]

    alone, together = scores(1), scores(2)
    assert [score["name"] for score in together] == [score["name"] for score in alone] != []
    for score, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(score["value"], other["value"], rtol=1e-4, atol=1e-6)


def test_likelihoods_are_those_of_one_process(ldm: Callable[..., str], one: Path, tmp_path: Path):
    flags = ["--likelihood", "both", "--num-samples", "6", "--batch-size", "4", "--flow-steps", "3"]
    assert_same_scores(ldm, one, flags, tmp_path)


@pytest.mark.parametrize("kind", [["--allow-small"], ["--reconstruction"]])
def test_scores_are_those_of_one_process(
    ldm: Callable[..., str], one: Path, network: list[str], kind: list[str], tmp_path: Path
):
    flags = [*network, *kind, "--num-samples", "12", "--batch-size", "4", "--bootstrap", "0"]
    assert_same_scores(ldm, one, flags, tmp_path)


def test_scores_in_training_are_those_of_one_process(
    ldm: Callable[..., str], one: Path, network: list[str], tmp_path: Path
):
    flags = [flag.replace("--", "--scoring.") for flag in network] + ["--first-stage.run", str(one)]
    flags += ["--scoring.every", "2", "--scoring.num-samples", "12", "--scoring.batch-size", "4"]
    flags += ["--scoring.metrics", "fd", "kid"]
    for count in (1, 2):
        ldm("train", SMALL, "--run-dir", str(tmp_path / str(count)), *flags, processes=count, steps=4)
    alone, together = metrics(tmp_path / "1"), metrics(tmp_path / "2")
    scored = {name for line in alone for name in line if "clip" in name}
    assert {name.partition("_")[0] for name in scored} == {"fd", "kid"}
    assert [line["step"] for line in alone if scored <= set(line)] == [2, 4]
    for line, other in zip(alone, together, strict=True):
        for name in scored & set(line):  # the features of the reference are computed in batches of another size
            np.testing.assert_allclose(other.pop(name), line.pop(name), rtol=1e-4, atol=1e-6)
    assert together == alone
    assert digest(tmp_path / "2") == digest(tmp_path / "1")
