"""Opening a run: what does not fit is refused before anything is written or trained."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fakes import PictureSource
from tiny import CLASSES, TEXT, tiny_experiment

from ldm_jax.config import (
    ClassConditioning,
    ClipTextConditioning,
    DiffusionConfig,
    EmbeddingConditioning,
    Experiment,
    MeshConfig,
    ScheduleConfig,
    SdxlConditioning,
    SpatialConditioning,
    Unconditional,
)
from ldm_jax.errors import UserError
from ldm_jax.training import workspace
from ldm_jax.training.workspace import open_workspace


@pytest.fixture
def experiment(data_cache: Path) -> Experiment:
    return tiny_experiment(data_cache)


def change_training(experiment: Experiment, stage: str, **changes: Any) -> Experiment:
    if stage == "training":
        return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, **changes))
    training = dataclasses.replace(experiment.first_stage.training, **changes)
    return dataclasses.replace(experiment, first_stage=dataclasses.replace(experiment.first_stage, training=training))


def refused(experiment: Experiment, folder: Path, message: str) -> None:
    """It is refused with this message, and no folder is left behind."""
    with pytest.raises(UserError, match=re.escape(message)):
        open_workspace(experiment, folder)
    assert not folder.exists()


@pytest.mark.parametrize("stage", ["training", "first_stage.training"])
def test_a_batch_that_the_devices_cannot_share(experiment: Experiment, tmp_path: Path, stage: str):
    message = f"{stage}.batch_size=20 cannot be split over 8 devices and 1 micro-batches; nearest that can: 16 and 24"
    refused(change_training(experiment, stage, batch_size=20), tmp_path / "run", message)


@pytest.mark.parametrize("stage", ["training", "first_stage.training"])
def test_a_batch_larger_than_the_data(experiment: Experiment, tmp_path: Path, stage: str):
    message = f"{stage}.batch_size=24 is larger than the data set: shapes/train has 20 pictures; use at most 20"
    refused(change_training(experiment, stage, batch_size=24), tmp_path / "run", message)


def test_a_mesh_of_devices_that_are_not_there(experiment: Experiment, tmp_path: Path):
    message = "--mesh.data -1 --mesh.fsdp 3 --mesh.tensor 1 needs a multiple of 3 devices, but there are 8"
    refused(dataclasses.replace(experiment, mesh=MeshConfig(fsdp=3)), tmp_path / "run", message)


def test_another_number_of_classes(experiment: Experiment, tmp_path: Path):
    message = "conditioning.num_classes=7, but the data set shapes has 4 classes; use that number"
    other = dataclasses.replace(experiment, conditioning=ClassConditioning(num_classes=7, context_dim=8))
    refused(other, tmp_path / "run", message)


def fake_source(**info: Any) -> PictureSource:
    source = PictureSource(32, shape=(8, 8, 3))
    return dataclasses.replace(source, info=dataclasses.replace(source.info, **info))


def test_classes_of_data_without(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workspace, "load_training_data", lambda config, split: fake_source(class_names=()))
    message = "conditioning.num_classes=4, but the data set fake has no classes; use text conditioning or none"
    refused(dataclasses.replace(experiment, conditioning=CLASSES), tmp_path / "run", message)


def test_captions_of_data_without(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workspace, "load_training_data", lambda config, split: fake_source(has_captions=False))
    message = (
        "the data set fake has no captions, which text conditioning needs; use class conditioning or none, or another "
        "data set"
    )
    refused(experiment, tmp_path / "run", message)


def test_marks_on_one_number(experiment: Experiment, tmp_path: Path):
    other = dataclasses.replace(experiment, conditioning=dataclasses.replace(TEXT, pad_token=2))
    message = "the marks of a trained tokenizer need three different numbers, not Marks(begin=1, end=2, pad=2)"
    refused(other, tmp_path / "run", message)


UNDELIVERED = {
    "maps": (
        {"conditioning": SpatialConditioning(), "denoiser": {"concat_channels": 3}},
        "this model (conditioning=SpatialConditioning) is told maps beside its pictures in training, and nothing makes "
        "them; set given=LowResolution() or LabelMap() in the experiment's file",
    ),
    "concatenated": (
        {"conditioning": Unconditional(), "denoiser": {"concat_channels": 4}},
        "is told maps of denoiser.concat_channels=4 channels in training, and nothing makes them; set given=Masked",
    ),
    "embeddings": (
        {"conditioning": EmbeddingConditioning(context_dim=8)},
        "is told embeddings for its pictures in training, and nothing makes them; set given=Neighbours()",
    ),
    "boxes": (
        {"conditioning": dataclasses.replace(TEXT, tokens="boxes")},
        "is told boxes of the objects in its pictures in training, and nothing makes them; set given=Layout()",
    ),
    "weights": (
        {"conditioning": ClipTextConditioning()},
        "ClipTextConditioning is not trained from nothing: give a model with its weights and its tokenizer, --start "
        "MODEL, or the folder of a transformers CLIPTextModel, --conditioning.folder FOLDER",
    ),
    "weights of two": (
        {"conditioning": SdxlConditioning(), "denoiser": {"vector_dim": 2816}},
        "SdxlConditioning is not trained from nothing: give a model",
    ),
}


@pytest.mark.parametrize("name", UNDELIVERED)
def test_conditions_that_no_data_deliver(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    changes, message = UNDELIVERED[name]
    monkeypatch.setattr(workspace, "load_source", None)  # nor is a data set prepared
    monkeypatch.setattr(workspace, "load_training_data", None)
    denoiser = dataclasses.replace(experiment.denoiser, **changes.get("denoiser", {}))
    other = dataclasses.replace(experiment, conditioning=changes["conditioning"], denoiser=denoiser)
    refused(other, tmp_path / "run", message)


def test_a_vocabulary_that_cannot_hold_the_bytes(experiment: Experiment, tmp_path: Path):
    other = dataclasses.replace(experiment, conditioning=dataclasses.replace(TEXT, vocab_size=100))
    refused(other, tmp_path / "run", "conditioning.vocab_size=100 cannot hold the bytes; use at least 259")


def test_a_schedule_that_leaves_no_signal(experiment: Experiment, tmp_path: Path):
    schedule = ScheduleConfig(kind="linear", beta_end=0.9)
    other = dataclasses.replace(experiment, diffusion=DiffusionConfig(schedule=schedule))
    refused(
        other, tmp_path / "run", "ScheduleConfig.kind=linear with num_train_timesteps=1000 and beta_end=0.9 leaves no"
    )


def test_a_folder_of_another_run_is_left_as_it_is(experiment: Experiment, tmp_path: Path):
    open_workspace(experiment, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="holds a run with another configuration:\n  seed: 0 -> 1\n"):
        open_workspace(dataclasses.replace(experiment, seed=1), tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_place_that_cannot_be_written(experiment: Experiment, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to \S*file/run \(.*\); use another folder: --run-dir DIR"):
        open_workspace(experiment, tmp_path / "file" / "run")


def test_it_notes_down_the_data(experiment: Experiment, tmp_path: Path):
    work = open_workspace(experiment, tmp_path / "run")
    data = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert data["train"] == {"name": "shapes", "num_pictures": 20, "fingerprint": work.train.info.fingerprint}
    assert data["test"]["num_pictures"] == 2
    assert data["class_names"] == ["circle", "square", "triangle", "star"]


def test_the_tokenizer_of_a_run_is_trained_once(experiment: Experiment, tmp_path: Path, monkeypatch):
    one = open_workspace(experiment, tmp_path / "run")
    monkeypatch.setattr(workspace, "train_tokenizer", None)
    other = open_workspace(experiment, tmp_path / "run")
    assert one.encode_caption is not None
    assert other.encode_caption is not None
    captions = [work.encode_caption("a red circle")["tokens"] for work in (one, other)]
    np.testing.assert_array_equal(*captions)


def test_the_tokenizer_writes_the_marks_of_the_configuration(experiment: Experiment, tmp_path: Path):
    text = dataclasses.replace(TEXT, begin_token=5, end_token=6, vocab_size=400)
    work = open_workspace(dataclasses.replace(experiment, conditioning=text), tmp_path / "run")
    assert work.encode_caption is not None
    empty = work.model.conditioner.null_inputs(1)["tokens"][0]
    np.testing.assert_array_equal(work.encode_caption("")["tokens"], empty)


def test_only_text_needs_a_tokenizer(experiment: Experiment, tmp_path: Path):
    for name, conditioning in (("none", Unconditional()), ("classes", CLASSES)):
        work = open_workspace(dataclasses.replace(experiment, conditioning=conditioning), tmp_path / name)
        assert work.encode_caption is None
        assert not work.run.tokenizer_file().exists()


def test_the_stages_see_the_pictures_in_orders_of_their_own(experiment: Experiment, tmp_path: Path):
    work = open_workspace(experiment, tmp_path / "run")
    one, other, again = (
        next(work.train_batches(work.train, experiment.training, purpose, 0))
        for purpose in ("autoencoder", "diffusion", "autoencoder")
    )
    assert {"image", "sample_index", "tokens", "class_labels"} == set(one)
    assert not np.array_equal(one["image"], other["image"])
    np.testing.assert_array_equal(one["image"], again["image"])
