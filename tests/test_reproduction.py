"""Runs, samples and scores made again from their manifests: the same bits, or what differs."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from test_evaluation_command import COLOURS, scores_of, tiny_network
from test_evaluation_pictures import save
from test_session import make_session
from tiny import CLASSES, tiny_experiment

from ldm_jax import cli
from ldm_jax.errors import UserError
from ldm_jax.evaluation import run as evaluation
from ldm_jax.experiment import train_experiment
from ldm_jax.interop.model_files import open_model, save_model
from ldm_jax.pictures import read_picture
from ldm_jax.reproduction.command import reproduce
from ldm_jax.reproduction.runs import reproduce_run
from ldm_jax.reproduction.samples import reproduce_samples
from ldm_jax.sampling import command as sampling
from ldm_jax.sampling.flags import parse_sample

pytestmark = pytest.mark.usefixtures("one_device")


def again(*flags: str) -> int:
    return reproduce(flags, lambda _: None)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(data_cache: Path, tmp_path: Path) -> Path:
    save_model(make_session(data_cache, CLASSES), tmp_path / "run", "run")
    return tmp_path / "run"


@pytest.fixture
def samples(run: Path) -> Path:
    flags = [str(run), "--class-label", "0", "--class-label", "1", "--num-samples", "3", "--batch-size", "4"]
    return sampling.draw(parse_sample([*flags, "--num-sample-steps", "2"]), open_model)[0].parent


def test_samples_are_drawn_again_to_the_bit(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manifest = json.loads((samples / "manifest.json").read_text())
    assert (manifest["kind"], manifest["seed"], manifest["batch_size"]) == ("samples", [0], 4)
    assert len(manifest["results"]) == 6
    assert len(manifest["model"]["autoencoder"]) == len(manifest["model"]["sha256"]) == 64
    assert again(str(samples)) == 0
    assert "circumstances: the same\nresults: the same, all 6 to the bit" in capsys.readouterr().out
    new = samples.with_name(f"{samples.name}-again")
    for name in manifest["results"]:
        np.testing.assert_array_equal(read_picture(samples / name)[0], read_picture(new / name)[0])
    with pytest.raises(UserError, match="is the folder that is to be reproduced; choose another one"):
        again(str(samples), "--out", str(samples))


@pytest.mark.slow
def test_what_differs_is_named(samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = samples / "manifest.json"
    manifest = json.loads(file.read_text())
    name, *_ = results = manifest["results"]
    with Image.open(samples / name) as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0, 0] ^= 64
    Image.fromarray(pixels).save(samples / name)
    edit(file, results={**results, name: "0" * 64}, python="2.7")
    assert again(str(file), "--out", str(tmp_path / "new"), "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert [line.split(":")[0] for line in said["circumstances"]] == ["python"]
    assert [result["name"] for result in said["results"] if not result["same"]] == [name]
    assert again(str(file), "--out", str(tmp_path / "new")) == 1, "what is there already is compared again"
    out = capsys.readouterr().out
    assert "python: 2.7 -> " in out and "results: 1 of 6 differ" in out
    assert f"{name}: 000000000000 -> " in out and "(0.52% of the values differ, by at most 64 of 255)" in out


@pytest.mark.slow
def test_samples_of_a_model_that_is_gone_or_another_one(samples: Path, run: Path, data_cache: Path, tmp_path: Path):
    manifest = json.loads((samples / "manifest.json").read_text())
    copy = shutil.copytree(samples, tmp_path / "copy")
    run.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="run does not exist"):
        again(str(copy))
    result = reproduce_samples(manifest, copy, tmp_path / "new", str(tmp_path / "moved"))
    assert result.is_same
    session = make_session(data_cache, CLASSES)
    params = session.params | {"denoiser": jax.tree.map(lambda x: x + 1, session.params["denoiser"])}
    save_model(dataclasses.replace(session, params=params), tmp_path / "other", "run")
    with pytest.raises(UserError, match=r"drawn with a model of checksum .* is now .*: it has been trained on"):
        again(str(copy), "--model", str(tmp_path / "other"))
    edit(copy / "manifest.json", results={})
    with pytest.raises(UserError, match="are not finished: give the command again that draws them"):
        again(str(copy))
    edit(copy / "manifest.json", config={})
    with pytest.raises(UserError, match=r"manifest\.json is damaged, or of another version \('pictures'\)"):
        again(str(copy))
    edit(copy / "manifest.json", config=manifest["config"], results=manifest["results"], mesh=None)
    with pytest.raises(UserError, match=r"is damaged, or of another version \(its mesh is None\)"):
        again(str(copy))


def test_what_cannot_be_made_again(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="is of a model that was converted, not trained here; the command that made it"):
        again(str(run))
    edit(run / "manifest.json", kind="poem")
    with pytest.raises(UserError, match="is of a 'poem'; runs, samples and scores can be reproduced"):
        again(str(run))
    edit(run / "manifest.json", version=0)
    with pytest.raises(UserError, match="is of version 0, of another ldm_jax; this one reads manifests of version 1"):
        again(str(run))


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evaluation, "load_network", tiny_network)
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "samples", COLOURS)
    save(tmp_path / "dark", COLOURS // 2)
    scores_of(target="samples", reference="dark")
    return tmp_path / "evaluation" / "samples" / "scores.json"


def test_a_score_is_computed_again(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert again(str(scored), "--out", "new") == 0
    assert "results: the same, all 8 to the bit" in capsys.readouterr().out
    first, second = (json.loads(file.read_text()) for file in (scored, tmp_path / "new" / "scores.json"))
    assert first["results"] == second["results"]
    assert first["config"]["target"] == str(tmp_path / "samples"), "paths hold wherever the file is read"
    first["results"]["scores"][0]["value"] += 1
    scored.write_text(json.dumps(first))
    assert again(str(scored), "--out", "new") == 1
    assert "results: 1 of 8 differ\n  fd_alexnet: {'value': " in capsys.readouterr().out


def test_a_score_of_other_pictures_or_flags(scored: Path, tmp_path: Path):
    record = json.loads(scored.read_text())
    shutil.copytree(tmp_path / "samples", tmp_path / "copy")
    assert again(str(scored), "--model", str(tmp_path / "copy"), "--out", "a") == 0, "a copy is the same pictures"
    save(tmp_path / "samples", COLOURS[:1] // 3)
    message = r"the samples of this score are others now:\n  fingerprint: \w+ -> \w+\nrestore them, or score them anew"
    with pytest.raises(UserError, match=message):
        again(str(scored), "--out", "b")
    assert not (tmp_path / "b" / "scores.json").exists()
    edit(scored, networks=[{"name": "other"}])
    with pytest.raises(UserError, match="networks of this score are others now"):
        again(str(scored), "--out", "b")
    edit(scored, config=record["config"] | {"magic": 3})
    with pytest.raises(UserError, match=r"flags that this version does not know \(.*magic"):
        again(str(scored), "--out", "b")


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_trained_again_to_the_bit(data_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = tmp_path / "run"
    train_experiment(tiny_experiment(data_cache), first)
    manifest = json.loads((first / "manifest.json").read_text())
    assert {stage: result["step"] for stage, result in manifest["results"].items()} == {
        "autoencoder": 3,
        "diffusion": 3,
    }
    assert again(str(first)) == 0
    assert "results: the same, all 4 to the bit" in capsys.readouterr().out
    lines = (first / "metrics.jsonl").read_text().splitlines()
    changed = [json.dumps(json.loads(line) | ({"loss": 0.5} if i == 4 else {})) for i, line in enumerate(lines)]
    (first / "metrics.jsonl").write_text("\n".join(changed) + "\n")
    assert again(str(first)) == 1
    assert "metrics from step 2 of diffusion on: {'loss': 0.5" in capsys.readouterr().out
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(first / "manifest.json", alone)
    assert reproduce_run(manifest, alone, tmp_path / "run-again").is_same, "a manifest is enough"
    edit(alone / "manifest.json", data={"train": manifest["data"]["train"] | {"fingerprint": "0" * 64}})
    with pytest.raises(
        UserError, match=r"the train split of shapes\S* has changed since the run was made: 20 pictures"
    ):
        again(str(alone))
    edit(alone / "manifest.json", results={})
    with pytest.raises(UserError, match="is not finished and has no checkpoints: there is nothing to compare with yet"):
        again(str(alone))


def test_a_run_has_no_model_to_be_moved(run: Path, tmp_path: Path):
    edit(run / "manifest.json", kind="run")
    with pytest.raises(UserError, match="--model x means nothing for a run, which is trained from its data"):
        again(str(run), "--model", "x")
    assert cli.run(cli.reproduce, [str(tmp_path / "nothing")]) == 2
