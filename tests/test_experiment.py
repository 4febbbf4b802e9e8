"""A whole experiment at a tiny size: its pictures, stopping and going on, and the first stage of another run."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_experiment

import ldm_jax.experiment
from ldm_jax.config import AutoencoderKLConfig, Experiment, FirstStageConfig, save_experiment
from ldm_jax.errors import UserError
from ldm_jax.experiment import train_experiment
from ldm_jax.sampling.session import load_session
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.state import TrainState
from ldm_jax.training.workspace import open_workspace

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


@pytest.fixture(scope="module")
def finished(data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        train_experiment(tiny_experiment(data_cache), path)
    return path


def from_run(experiment: Experiment, run: Path, **changes: object) -> Experiment:
    """The experiment with the first stage of another run."""
    first: FirstStageConfig = dataclasses.replace(experiment.first_stage, run=str(run), **changes)
    return dataclasses.replace(experiment, first_stage=first)


def test_a_run_leaves_what_the_design_names(finished: Path):
    found = {str(path.relative_to(finished)) for path in finished.rglob("*")}
    expected = {"config.json", "manifest.json", "metrics.jsonl", "loss.png", "tokenizer.json"}
    pictures = {"reconstruction_000003.png", "samples_000003.png", "heldout.png"}
    seals = {f"checkpoints/{stage}/{step:08d}.json" for stage in ("autoencoder", "diffusion") for step in (2, 3)}
    assert expected | {f"samples/{name}" for name in pictures} | seals <= found
    assert any(name.startswith("tensorboard/diffusion/events") for name in found)


def test_both_stages_are_in_the_metrics(finished: Path):
    lines = [(m["stage"], m["step"]) for m in read_metrics(finished / "metrics.jsonl")]
    assert lines == [(stage, step) for stage in ("autoencoder", "diffusion") for step in (1, 2, 3)]
    last = read_metrics(finished / "metrics.jsonl")[-1]
    assert {"loss", "heldout_loss", "grad_norm", "images_per_second", "input_wait"} <= set(last)


def test_the_grids_show_every_prompt_and_the_heldout_captions(finished: Path, data_cache: Path):
    sampling = tiny_experiment(data_cache).sampling
    prompts, each = len(sampling.prompts), sampling.samples_per_prompt
    width, height = Image.open(finished / "samples" / "samples_000003.png").size
    assert width >= 96 * each
    assert height >= 96 * prompts
    held = Image.open(finished / "samples" / "heldout.png").size
    assert held[0] >= 96 * (1 + each)


def test_going_on_with_a_finished_run_does_nothing(finished: Path, data_cache: Path, caplog: pytest.LogCaptureFixture):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with caplog.at_level(logging.INFO):
        train_experiment(tiny_experiment(data_cache), finished)
    assert f"{finished} is finished: trained for 3 steps" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_missing_last_grid_is_drawn_again_without_training(
    finished: Path, data_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """As a kill after the last checkpoint would leave it."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "samples" / "heldout.png").unlink()
    with caplog.at_level(logging.INFO):
        train_experiment(tiny_experiment(data_cache), run)
    for stage in ("autoencoder", "diffusion"):
        assert f"{stage}: already trained for 3 steps" in caplog.text
    assert (run / "samples" / "heldout.png").read_bytes() == (finished / "samples" / "heldout.png").read_bytes()
    assert len(json.loads((run / "manifest.json").read_text())["continued"]) == 1


def test_another_experiment_in_its_folder_is_refused(finished: Path, data_cache: Path):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(
        UserError, match=r"holds a run with another configuration:\n  seed: 0 -> 9\nnothing was changed"
    ):
        train_experiment(dataclasses.replace(tiny_experiment(data_cache), seed=9), finished)
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_latents_are_brought_to_unit_spread(finished: Path):
    session = load_session(finished)
    latent = session.params["latent"]
    assert set(latent) == {"mean", "std"}
    assert (np.asarray(latent["std"]) > 0).all()


def test_the_second_stage_can_start_from_the_first_of_another_run(finished: Path, data_cache: Path, tmp_path: Path):
    train_experiment(from_run(tiny_experiment(data_cache), finished), tmp_path / "second")
    assert not (tmp_path / "second" / "checkpoints" / "autoencoder").exists()
    one, other = (load_session(path) for path in (finished, tmp_path / "second"))
    for part in ("autoencoder", "latent", "denoiser", "conditioner"):
        jax.tree.map(np.testing.assert_array_equal, one.params[part], other.params[part])


def refused(experiment: Experiment, folder: Path, message: str) -> None:
    """It is refused with this message, and no folder is left behind."""
    with pytest.raises(UserError, match=message):
        train_experiment(experiment, folder)
    assert not folder.exists()


def test_another_autoencoder_is_refused_with_what_differs(finished: Path, data_cache: Path, tmp_path: Path):
    experiment = tiny_experiment(data_cache)
    autoencoder: AutoencoderKLConfig = dataclasses.replace(experiment.first_stage.autoencoder, num_res_blocks=2)
    message = (
        rf"first_stage\.run={re.escape(str(finished))} has another autoencoder "
        r"\(first_stage\.autoencoder\.num_res_blocks: 1 -> 2\); give this experiment the same one"
    )
    refused(from_run(experiment, finished, autoencoder=autoencoder), tmp_path / "new", message)


def test_a_first_stage_that_is_not_there_is_refused(data_cache: Path, tmp_path: Path):
    experiment = from_run(tiny_experiment(data_cache), tmp_path / "none")
    refused(experiment, tmp_path / "new", r"none/config\.json does not exist: \S*none is not a run folder")


def test_a_first_stage_that_is_not_finished_is_refused(finished: Path, data_cache: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "half")
    (tmp_path / "half" / "checkpoints" / "autoencoder" / "00000003.json").unlink()
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "diffusion")
    experiment = from_run(tiny_experiment(data_cache), tmp_path / "half")
    message = r"half has trained its autoencoder for 2 of 3 steps; finish that run first"
    refused(experiment, tmp_path / "new", message)
    shutil.rmtree(tmp_path / "half" / "checkpoints")
    refused(experiment, tmp_path / "new", "has trained its autoencoder for 0 of 3 steps")


def test_a_damaged_first_stage_is_refused(finished: Path, data_cache: Path, tmp_path: Path):
    """Its older checkpoint would do to go on with, but not to build on."""
    shutil.copytree(finished, tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoints" / "autoencoder" / "00000003" / "_CHECKPOINT_METADATA").unlink()
    experiment = from_run(tiny_experiment(data_cache), tmp_path / "damaged")
    refused(experiment, tmp_path / "new", r"autoencoder/00000003 is damaged: _CHECKPOINT_METADATA is missing")


def test_pictures_that_cannot_be_drawn_stop_no_training(
    finished: Path, data_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A model that draws nothing but noise yet may still learn to."""

    def draw(*_: Any) -> None:
        raise UserError("numbers that are not finite")

    monkeypatch.setattr(ldm_jax.experiment, "_draw_samples", draw)
    work = open_workspace(tiny_experiment(data_cache), finished)
    state = TrainState(jnp.zeros((), jnp.int32), {}, {}, (), {}, {}, {})
    ldm_jax.experiment._try_to_draw(work, state, 7)
    assert "there are no pictures of step 7: numbers that are not finite" in caplog.text


def test_a_folder_with_nothing_but_a_configuration_is_a_run_that_begins(data_cache: Path, tmp_path: Path):
    """As a kill right after the start leaves it; and a picture that stopped it says so."""
    experiment = tiny_experiment(data_cache)
    save_experiment(experiment, tmp_path / "config.json")
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        train_experiment(dataclasses.replace(experiment, seed=1), tmp_path)


def test_latents_may_be_encoded_batch_by_batch(finished: Path, data_cache: Path, tmp_path: Path):
    experiment = tiny_experiment(data_cache)
    data = dataclasses.replace(experiment.data, cache_latents=False)
    train_experiment(dataclasses.replace(experiment, data=data), tmp_path / "run")
    one, other = (read_metrics(path / "metrics.jsonl")[-1]["loss"] for path in (finished, tmp_path / "run"))
    assert one == pytest.approx(other, rel=1e-3)
