"""Learned variance and importance-sampled timesteps in training: one step, resumed, sampled with and without."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_diffusion_step import make_batch
from test_evaluation_command import tiny_network
from tiny import TEXT, random_params, tiny_experiment

from ldm_jax import rng, sharding
from ldm_jax.config import DiffusionConfig, Experiment, ScoringConfig, Unconditional
from ldm_jax.diffusion.timesteps import HISTORY
from ldm_jax.errors import UserError
from ldm_jax.evaluation import scorer
from ldm_jax.evaluation.command import EvaluateCommand
from ldm_jax.evaluation.run import evaluate_target
from ldm_jax.experiment import train_experiment
from ldm_jax.interop.model_files import open_model, save_model
from ldm_jax.model import make_model
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.loop import from_items, to_items
from ldm_jax.training.program import diffusion_program
from ldm_jax.training.run_folder import RunFolder

ROOT = rng.root_key(0)
T = 6


@pytest.fixture(scope="module")
def experiment(data_cache: Path) -> Experiment:
    """Both options, few timesteps, and no conditions."""
    tiny = tiny_experiment(data_cache)
    schedule = dataclasses.replace(tiny.diffusion.schedule, num_train_timesteps=T, beta_start=0.01, beta_end=0.9)
    diffusion = DiffusionConfig(schedule=schedule, variance="learned", vlb_weight=0.1, timesteps="importance")
    return dataclasses.replace(tiny, diffusion=diffusion, conditioning=Unconditional())


def states(experiment: Experiment, steps: int) -> list[Any]:
    """The states of a stage after each of some steps, and the metrics of each."""
    model = make_model(experiment)
    program = diffusion_program(model, experiment, sharding.make_mesh(experiment.mesh))
    every = random_params(model)
    given = {name: every.pop(name) for name in ("autoencoder", "latent")}
    state = jax.jit(program.init)(ROOT, given, every)
    step, found = jax.jit(program.step), []
    with_tokens = make_batch(make_model(dataclasses.replace(experiment, conditioning=TEXT)))
    for number in range(steps):
        batch = {name: with_tokens[name] for name in ("moments", "sample_index")}
        batch["sample_index"] = batch["sample_index"] + 8 * number
        state, metrics = step(state, batch, ROOT)
        found.append((state, metrics))
    return found


@pytest.mark.slow
def test_the_history_follows_what_was_drawn(experiment: Experiment):
    steps = 3 * HISTORY
    found = states(experiment, steps)
    history = found[-1][0].frozen["timestep_history"]
    visited = sum(np.asarray(metrics["timestep_counts"]) > 0 for _, metrics in found)
    np.testing.assert_array_equal(history["drawn"], visited)
    assert int(history["drawn"].min()) >= HISTORY, "by now timesteps are drawn by importance"
    counts = sum(np.asarray(metrics["timestep_counts"]) for _, metrics in found)
    assert counts.sum() * experiment.training.gradient_accumulation == 8 * steps
    assert all(np.isfinite(float(metrics["loss"])) for _, metrics in found)
    state = found[-1][0]
    assert "timestep_history" not in state.model_params
    again = from_items(to_items(state), state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.slow
def test_a_denoiser_with_a_variance_draws_with_every_kind_of_sampler(experiment: Experiment):
    model = make_model(experiment)
    params = random_params(model)
    assert params["denoiser"]["conv_out"]["kernel"].shape[-1] == 2 * model.latent_shape[-1]
    session = Session(experiment, model, params)
    pictures = {}
    for sampler in ("ddpm", "ddim"):
        config = dataclasses.replace(experiment.sampling, sampler=sampler, guidance_scale=1.0)
        pictures[sampler] = np.stack(list(session.draw(session.null_inputs(2), 2, config, seed=0)))
    assert session.sampler(dataclasses.replace(experiment.sampling, sampler="ddpm")).takes_variance
    moved = jax.tree.map(lambda x: x, params)
    kernel = moved["denoiser"]["conv_out"]["kernel"]
    moved["denoiser"]["conv_out"] = {**moved["denoiser"]["conv_out"], "kernel": kernel.at[..., 2:].set(0.0)}
    other = dataclasses.replace(session, params=moved)
    for sampler, same in (("ddpm", False), ("ddim", True)):
        config = dataclasses.replace(experiment.sampling, sampler=sampler, guidance_scale=1.0)
        again = np.stack(list(other.draw(session.null_inputs(2), 2, config, seed=0)))
        assert np.array_equal(again, pictures[sampler]) == same


def test_other_systems_are_not_given_a_variance_that_they_would_not_expect(experiment: Experiment, tmp_path: Path):
    model = make_model(experiment)
    session = Session(experiment, model, jax.tree.map(jnp.asarray, random_params(model)))
    for form in ("diffusers", "original"):
        with pytest.raises(UserError, match="its denoiser learns the variance too, which no other system here is told"):
            save_model(session, tmp_path / form, form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_with_everything_is_scored_sampled_and_measured(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scorer, "load_network", tiny_network)
    best = {"keep_best": 1, "best_metric": "fd_alexnet", "checkpoint_every": 1}
    training = dataclasses.replace(experiment.training, ema_profiles=(0.05, 0.1), snapshot_every=1, **best)
    scoring = ScoringConfig(every=2, num_samples=8, batch_size=8, metrics=("fd",))
    path = tmp_path / "run"
    train_experiment(dataclasses.replace(experiment, training=training, scoring=scoring), path)
    scores = {m["step"]: m["fd_alexnet"] for m in read_metrics(path / "metrics.jsonl") if "fd_alexnet" in m}
    assert list(scores) == [1, 2, 3]
    run = RunFolder(path)
    assert min(scores, key=lambda step: scores[step]) in run.checkpoints("diffusion").steps()
    assert run.snapshots("diffusion").steps() == [1, 2, 3]
    usual, rebuilt = load_session(path), open_model(path, ema_sigma_rel=0.07)
    assert set(rebuilt.params) == set(usual.params)
    kernels = [s.params["denoiser"]["conv_in"]["kernel"] for s in (usual, rebuilt)]
    assert 0 < float(jnp.abs(kernels[0] - kernels[1]).max()) < 0.1
    asked = {"target": str(path), "likelihood": "both", "flow_steps": 3, "batch_size": 8}
    found = {score.name: score.value for score in evaluate_target(EvaluateCommand(**asked))[0]}
    assert all(np.isfinite(value) for value in found.values())
    again = evaluate_target(EvaluateCommand(**asked, ema_sigma_rel=0.07))[0][0]
    assert again.value != found[again.name]
