"""`ldm evaluate --likelihood` from a run to its files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from test_evaluation_command import write_run
from tiny import CLASSES, random_params, shrink, tiny_experiment

from ldm_jax.config import AutoencoderVQConfig, Experiment, load_experiment
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.evaluation import likelihood
from ldm_jax.evaluation.command import EvaluateCommand, check
from ldm_jax.evaluation.likelihood import own_conditions
from ldm_jax.evaluation.run import evaluate_target
from ldm_jax.model import make_model
from ldm_jax.sampling.model_hash import model_hash
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.workspace import open_workspace

TIMESTEPS = 12


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_device: None) -> None:
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    first = jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: first)


@pytest.fixture
def experiment(data_cache: Path) -> Experiment:
    """Twenty pictures of shapes by their classes, two of them held out, and few timesteps."""
    tiny = tiny_experiment(data_cache)
    schedule = dataclasses.replace(
        tiny.diffusion.schedule, num_train_timesteps=TIMESTEPS, beta_start=0.01, beta_end=0.9
    )
    diffusion = dataclasses.replace(tiny.diffusion, schedule=schedule)
    return dataclasses.replace(tiny, conditioning=CLASSES, diffusion=diffusion, name="tiny")


def measured(run: Path, **flags: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    of_flow = {"flow_steps": 4} if flags.get("likelihood") in ("flow", "both") else {}
    command = EvaluateCommand(**{"target": str(run), "likelihood": "bound", "batch_size": 2, **of_flow, **flags})
    check(command)
    scores, record = evaluate_target(command)
    return {score.name: score for score in scores}, record


@pytest.mark.slow
def test_every_term_is_told_and_they_add_up(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(experiment, tmp_path / "run")
    scores, record = measured(run)
    assert list(scores) == ["bits_bound_latent", "bits_bound_picture"]
    found = record["likelihood"]
    mean = {name: term["mean"] for name, term in found["terms"].items()}
    assert len(mean["kl"]) == len(found["terms"]["kl"]["timestep"]) == TIMESTEPS - 1
    assert sum(mean["kl"]) == pytest.approx(mean["kl_sum"], rel=1e-5)
    latent = mean["prior"] + mean["kl_sum"] + mean["decoder"]
    assert scores["bits_bound_latent"].value == pytest.approx(latent, rel=1e-5)
    assert record["pictures"]["weights_sha256"] == model_hash(load_session(run))
    share = found["latent_size"] / found["picture_size"]
    assert share == 4 * 4 * 2 / (8 * 8 * 3)
    picture = mean["reconstruction"] - mean["entropy"] + share * latent
    assert scores["bits_bound_picture"].value == pytest.approx(picture, rel=1e-5)
    assert all(score.num_samples == 2 and score.low <= score.value <= score.high for score in scores.values())
    assert json.loads((run / "evaluation" / "likelihood.json").read_text())["likelihood"] == found
    with Image.open(run / "evaluation" / "likelihood.png") as plot:
        assert plot.width > 500

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is computed twice")

    monkeypatch.setattr(likelihood, "variational_bound", never)
    assert measured(run)[0] == scores


def test_each_picture_is_conditioned_on_what_it_gives(data_cache: Path, tmp_path: Path):
    """Of a model of neighbours; the noise of a likelihood is keyed by picture, so what differs is what is given."""
    experiment = shrink(load_experiment("neighbours"), data_cache)
    work = open_workspace(experiment, tmp_path / "run")
    session = Session(experiment, work.model, random_params(work.model), shelf=work.shelf)
    told = own_conditions(session, work.test)(np.arange(2))
    for i in range(2):
        np.testing.assert_array_equal(told["embeddings"][i], session.given.of_heldout(i)["embeddings"])
    assert (told["embeddings"][0] != told["embeddings"][1]).any()


@pytest.mark.slow
def test_a_batch_size_changes_no_likelihood(experiment: Experiment, tmp_path: Path):
    run = write_run(experiment, tmp_path / "run")
    together, one_by_one = (measured(run, batch_size=size, likelihood="both")[0] for size in (2, 1))
    assert list(together) == ["bits_bound_latent", "bits_flow_latent", "bits_bound_picture", "bits_flow_picture"]
    for name, score in together.items():
        assert score.value == pytest.approx(one_by_one[name].value, rel=1e-4)


@pytest.mark.slow
def test_a_point_has_no_bound_of_pictures(experiment: Experiment, tmp_path: Path):
    kl = experiment.first_stage.autoencoder
    shared = {f.name: getattr(kl, f.name) for f in dataclasses.fields(AutoencoderVQConfig) if hasattr(kl, f.name)}
    first = dataclasses.replace(experiment.first_stage, autoencoder=AutoencoderVQConfig(**shared, codebook_size=16))
    run = write_run(dataclasses.replace(experiment, first_stage=first), tmp_path / "run")
    scores, record = measured(run, likelihood="flow", flow_probes=0)
    assert list(scores) == ["bits_flow_latent"]
    assert "exact trace" in scores["bits_flow_latent"].protocol
    assert record["likelihood"]["decoder_scale"] is None
    assert not (run / "evaluation" / "likelihood.png").exists()


def test_a_picture_is_conditioned_on_its_own_class(experiment: Experiment, data_cache: Path):
    source = load_source(experiment.data, "train")
    session = Session(experiment, make_model(experiment), {})
    found = own_conditions(session, source)(np.asarray([3, 0, 7]))["class_labels"]
    np.testing.assert_array_equal(found, [source[i]["label"] for i in (3, 0, 7)])
    other = dataclasses.replace(CLASSES, num_classes=2)
    with pytest.raises(UserError, match="has 4 classes, and this model knows 2; use the data that it was trained on"):
        own_conditions(
            dataclasses.replace(session, experiment=dataclasses.replace(experiment, conditioning=other)), source
        )


def test_flags_that_say_nothing_are_refused():
    cases: dict[str, dict[str, Any]] = {
        "--flow-steps=1 must be from 2 to": {"flow_steps": 1},
        "--flow-probes=-1 must be from 0 to": {"flow_probes": -1},
        "--flow-steps=5 goes with --likelihood flow or both": {"flow_steps": 5},
        "--reference means nothing with --likelihood; leave it out": {"reference": "x"},
        "--network means nothing with --likelihood": {"network": ("clip",), "weights": ("x",)},
        "--likelihood means nothing with --reconstruction": {"reconstruction": True},
    }
    for message, flags in cases.items():
        with pytest.raises(UserError, match=message):
            check(EvaluateCommand(target="x", likelihood="bound", **flags))
