"""A run folder: what it refuses, leaving everything as it was, and what it notes down."""

import dataclasses
import json
import os
import re
import time
from pathlib import Path

import jax
import pytest

from ldm_jax.config import DataConfig, Experiment, ImageFolder, MeshConfig, restore_experiment
from ldm_jax.errors import UserError
from ldm_jax.training.keep_policy import KeepPolicy
from ldm_jax.training.run_folder import RunFolder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The folder of a run of the default experiment."""
    run = RunFolder(tmp_path / "run")
    run.check(Experiment())
    run.open(Experiment())
    return run


def test_it_holds_the_resolved_configuration(run: RunFolder):
    assert restore_experiment(run.path / "config.json") == Experiment()
    assert run.load_config() == Experiment()
    assert run.samples.is_dir()


def test_the_same_experiment_goes_on(run: RunFolder):
    run.check(Experiment())
    run.open(Experiment())


def test_how_it_is_executed_may_change(run: RunFolder):
    other = dataclasses.replace(Experiment(), mesh=MeshConfig(fsdp=2))
    run.check(other)
    run.open(other)
    assert run.load_config() == other


def test_data_may_lie_elsewhere(tmp_path: Path):
    here, there = (
        dataclasses.replace(Experiment(), data=DataConfig(source=ImageFolder(directory=place)))
        for place in ("/a", "/b")
    )
    run = RunFolder(tmp_path / "run")
    run.open(here)
    run.check(there)
    same = {"num_pictures": 5, "fingerprint": "f"}
    run.write_manifest(here, {"train": {"name": "a", **same}})
    run.check_data({"train": {"name": "b", **same}})


def test_another_configuration_is_refused_and_nothing_overwritten(run: RunFolder):
    before = contents(run.path)
    other = dataclasses.replace(
        Experiment(), seed=5, data=dataclasses.replace(Experiment().data, source=ImageFolder(directory="/x"))
    )
    message = (
        f"{run.path} holds a run with another configuration:\n"
        "  seed: 0 -> 5\n"
        "  data.source: Shapes(num_examples=600) -> ImageFolder(directory='/x', test_fraction=0.05)\n"
        "nothing was changed; use the same configuration to continue it, or another folder: --run-dir DIR"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        run.check(other)
    assert contents(run.path) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    message = f"{tmp_path} exists and is not a run folder; use another one: --run-dir DIR"
    with pytest.raises(UserError, match=re.escape(message)):
        RunFolder(tmp_path).check(Experiment())
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    locked = tmp_path / "locked"
    locked.mkdir()
    (tmp_path / "file").touch()
    may_be_written = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and may_be_written(path, mode))  # or for root
    RunFolder(tmp_path / "new" / "run").check_writable()
    for run, there in (("locked", "locked"), ("locked/new/run", "locked"), ("file/run", "file")):
        message = f"cannot write to {tmp_path / run} ({tmp_path / there} may not be written); use another folder"
        with pytest.raises(UserError, match=re.escape(message)):
            RunFolder(tmp_path / run).check_writable()
    assert set(contents(tmp_path)) == {"file"}


def test_a_file_is_no_run_folder(tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a run folder"):
        RunFolder(tmp_path / "file").check(Experiment())


def test_an_empty_folder_and_none_at_all_are_fine(tmp_path: Path):
    RunFolder(tmp_path).check(Experiment())
    RunFolder(tmp_path / "new").check(Experiment())
    assert not (tmp_path / "new").exists()


def test_what_was_interrupted_before_it_was_a_run_goes_on(tmp_path: Path):
    (tmp_path / "config.json.tmp").write_text('{"type": "Exp')
    RunFolder(tmp_path).check(Experiment())
    RunFolder(tmp_path).open(Experiment())
    RunFolder(tmp_path).check(Experiment())


def test_one_program_trains_in_a_folder(run: RunFolder):
    with (
        run.claimed(),
        pytest.raises(UserError, match=r"another program trains in .*run; wait for it, or end it"),
        RunFolder(run.path).claimed(),
    ):
        pass
    with RunFolder(run.path).claimed():
        pass


def test_a_folder_that_the_first_process_has_opened_elsewhere(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    run.require_opened()
    with pytest.raises(
        UserError, match=r"process 0 has opened .*other, and it is not there for this process; it has to"
    ):
        RunFolder(tmp_path / "other").require_opened()
    assert sum(waits) > 5, "a network disk may take some seconds to show it"


@pytest.mark.parametrize("content", ["", '{"type": "Exp', "[1, 2]"])
def test_a_damaged_configuration_is_not_overwritten(run: RunFolder, content: str):
    run.config_file.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(run.config_file))):
        run.check(Experiment())
    assert run.config_file.read_text() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    run = RunFolder(tmp_path / "file" / "run")
    run.check(Experiment())
    message = rf"cannot write to {re.escape(str(run.path))} \(.*Not a directory.*\); use another folder: --run-dir DIR"
    with pytest.raises(UserError, match=message):
        run.open(Experiment())


def test_the_manifest_tells_how_it_was_made(run: RunFolder):
    run.write_manifest(dataclasses.replace(Experiment(), seed=3), {"train": {"fingerprint": "abc"}})
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["packages"]["jax"] == jax.__version__
    assert len(manifest["devices"]) == jax.device_count()
    assert manifest["config"]["seed"] == 3
    assert manifest["data"] == {"train": {"fingerprint": "abc"}}
    assert (manifest["kind"], manifest["results"]) == ("run", {})
    assert run.read_manifest() == manifest


def test_going_on_keeps_how_the_run_was_started_and_warns_of_other_devices(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run.write_manifest(Experiment(), {"train": {"fingerprint": "abc"}})
    first = run.read_manifest()
    run.write_manifest(Experiment(), {})
    assert caplog.text == ""
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]])
    run.write_manifest(Experiment(), {})
    manifest = run.read_manifest()
    assert [len(manifest.pop("continued")), first.pop("continued")] == [2, []]
    assert manifest == first
    assert re.search(
        r"was started on \d+ devices .* goes on with 1 .* equal up to rounding, not to the bit", caplog.text
    )


def test_changed_data_are_refused(run: RunFolder):
    data = {"train": {"name": "shapes", "num_pictures": 64, "fingerprint": "abc"}, "credit": "by nobody"}
    run.check_data(data)  # a new run takes any
    run.write_manifest(Experiment(), data)
    run.check_data(data)
    message = (
        rf"the train split of shapes has changed since {re.escape(str(run.path))} was started \(64 pictures then\); "
        "restore the data, or train into another folder: --run-dir DIR"
    )
    with pytest.raises(UserError, match=message):
        run.check_data({**data, "train": {**data["train"], "fingerprint": "abd"}})


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_missing_or_damaged_manifest_stops_nothing(run: RunFolder, content: str | None):
    if content is not None:
        (run.path / "manifest.json").write_text(content)
    assert run.read_manifest() == {}


def test_stages_have_checkpoints_of_their_own(run: RunFolder):
    policy = KeepPolicy(newest=3)
    assert run.checkpoints("diffusion", policy).directory == run.path / "checkpoints" / "diffusion"
    assert run.checkpoints("diffusion", policy).keep == policy


@pytest.mark.parametrize("content", ["", "{", '{"devices": 3, "continued": [], "data": {}}', "[]"])
def test_a_damaged_manifest_is_written_anew_with_a_warning(
    run: RunFolder, caplog: pytest.LogCaptureFixture, content: str
):
    run.manifest_file.write_text(content)
    run.write_manifest(Experiment(), {})
    assert f"{run.manifest_file} is damaged and is written anew, with what is known now" in caplog.text
    assert run.read_manifest()["continued"] == []


def test_its_position_in_the_data_is_that_of_its_batches(run: RunFolder):
    experiment = Experiment()
    assert run.examples_at("diffusion", 7) == 7 * experiment.training.batch_size
    assert run.examples_at("autoencoder", 7) == 7 * experiment.first_stage.training.batch_size
