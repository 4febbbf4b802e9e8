"""Scores in training: the numbers of `ldm evaluate`, and what is missing is said before the first step."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_evaluation_command import tiny_network, write_run
from tiny import random_params, tiny_experiment

from ldm_jax.config import Experiment, ScoringConfig, Unconditional
from ldm_jax.errors import UserError
from ldm_jax.evaluation import run, scorer
from ldm_jax.evaluation.command import EvaluateCommand
from ldm_jax.evaluation.run import evaluate_target
from ldm_jax.evaluation.scorer import make_scorer
from ldm_jax.experiment import train_experiment
from ldm_jax.sampling.session import Session
from ldm_jax.training.workspace import open_workspace

SCORING = ScoringConfig(every=2, num_samples=12, batch_size=8, metrics=("fd", "kid", "is", "pr"))
NAMES = ("fd_alexnet", "kid_alexnet", "is_alexnet", "precision_alexnet", "recall_alexnet")


@pytest.fixture
def experiment(data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_device: None) -> Experiment:
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scorer, "load_network", tiny_network)
    monkeypatch.setattr(run, "load_network", tiny_network)
    tiny = dataclasses.replace(tiny_experiment(data_cache), conditioning=Unconditional(), name="tiny")
    return dataclasses.replace(tiny, sampling=dataclasses.replace(tiny.sampling, guidance_scale=1.0), seed=3)


@pytest.mark.slow
def test_the_scores_are_those_of_the_command(experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    work = open_workspace(experiment, tmp_path / "training")
    session = Session(experiment, work.model, random_params(work.model))
    with caplog.at_level(logging.INFO, "ldm_jax"):
        made = make_scorer(work, session, SCORING)
    assert "every 2 steps fd_alexnet, kid_alexnet, " in caplog.text
    assert "of 12 samples against 20 pictures of shapes/train" in caplog.text
    found = made.score(session)
    assert made.names == NAMES
    assert found.pop("score_samples") == 12
    target = write_run(experiment, tmp_path / "run")
    flags: dict[str, Any] = {"metrics": SCORING.metrics, "num_samples": 12, "bootstrap": 0, "seed": experiment.seed}
    scores, _ = evaluate_target(EvaluateCommand(target=str(target), batch_size=8, **flags))
    assert found == pytest.approx({score.name: score.value for score in scores}, rel=1e-5)
    other = dataclasses.replace(session, params=jax.tree.map(lambda x: x * np.float32(1.1), session.params))
    assert made.score(other)["fd_alexnet"] != found["fd_alexnet"]


def test_what_cannot_be_scored_is_refused_at_the_start(experiment: Experiment, tmp_path: Path):
    work = open_workspace(experiment, tmp_path / "training")
    session = Session(experiment, work.model, {})
    with pytest.raises(UserError, match=r"scoring\.metrics=is cannot be had over alexnet; usable: fd sfd kid pr dc"):
        no_logits = tiny_network("alexnet")
        apply = no_logits.apply
        changed = dataclasses.replace(no_logits, apply=lambda p, x: apply(p, x)._replace(logits=x[:, 0, 0, :0]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scorer, "load_network", lambda *_: dataclasses.replace(changed, protocol="without"))
            make_scorer(work, session, SCORING)


def test_missing_weights_end_a_run_before_it_begins(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.undo()
    path = tmp_path / "run"
    scoring = dataclasses.replace(SCORING, network="inception")
    with pytest.raises(UserError, match=r"scoring\.network=inception: the network inception comes with no weights"):
        train_experiment(dataclasses.replace(experiment, scoring=scoring), path)
    training = dataclasses.replace(experiment.training, keep_best=1, best_metric="fd_alexnet")
    message = r"best_metric='fd_alexnet' is not measured here, .*; use one of heldout_loss"
    with pytest.raises(UserError, match=message):
        train_experiment(dataclasses.replace(experiment, training=training), path)
    assert not (path / "checkpoints").exists()


def test_numbers_are_checked():
    cases: dict[str, dict[str, Any]] = {
        "ScoringConfig.every=-1 must not be negative": {"every": -1},
        "ScoringConfig.num_samples=1 have no covariance; use at least 2": {"num_samples": 1},
        "ScoringConfig.metrics names none; use fd, or every=0": {"metrics": ()},
        "ScoringConfig.metrics=fd fd names one twice": {"metrics": ("fd", "fd")},
    }
    for message, fields in cases.items():
        with pytest.raises(UserError, match=message):
            ScoringConfig(**fields)
