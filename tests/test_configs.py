"""Every shipped experiment: it loads, builds, says what it is, and resumes to the bit at a tiny size."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import shrink

from ldm_jax import config as configs
from ldm_jax import rng, sharding
from ldm_jax.model import make_model
from ldm_jax.sharding import state_shardings
from ldm_jax.training.autoencoder_stage import make_autoencoder_stage
from ldm_jax.training.diffusion_stage import make_diffusion_stage
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.loop import Stage, run_stage
from ldm_jax.training.state import TrainState
from ldm_jax.training.workspace import Workspace, open_workspace

NAMES = configs.experiment_names()
SINGLE = [name for name in NAMES if "/" not in name]
FAMILY = [name for name in NAMES if "/" in name]
RESTARTED = [
    *("fashion_mnist", "imagenet256_ldm4", "inpainting", "layout", "neighbours", "openmoji", "openmoji_vq"),
    *("semantic", "superres", "text2image_f8", "zoo/lsun_churches256"),
]
"""As many as differ, at a tiny size, where a restart could. The `smoke` experiment and a classifier are restarted in
tests of their own."""


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_survives_saving(name: str):
    experiment = configs.load_experiment(name)
    assert experiment.name == name
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(experiment)))) == experiment


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_gives_the_command_and_what_was_measured(name: str):
    text = configs.describe_experiment(name)
    assert re.search(rf"python train\.py( {name}\b|$)", text, re.MULTILINE), "the command that runs it"
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", text) or "not measured" in text.lower(), (
        "the date of its numbers, or none"
    )


@pytest.mark.parametrize("name", FAMILY)
def test_a_member_of_the_zoo_tells_what_was_published(name: str):
    text = configs.describe_experiment(name)
    for said in ("Published: ", "Learning rate: ", "Hardware: "):
        assert said in text
    flag = "--data.source.directory"
    assert f"{flag} {'TFDS_DIR' if is_tfds(name) else 'PICTURES'}" in text


def is_tfds(name: str) -> bool:
    return isinstance(configs.load_experiment(name).data.source, configs.PreparedTfds)


@pytest.mark.parametrize("name", SINGLE)  # of the zoo: tests/test_zoo.py
def test_its_model_can_be_built(name: str):
    experiment = configs.load_experiment(name)
    model = make_model(experiment)
    params = jax.eval_shape(model.init, rng.root_key(0))
    assert set(params) == {"autoencoder", "latent", "conditioner", "denoiser"}
    image = jax.ShapeDtypeStruct((2, *model.image_shape), np.float32)
    moments = jax.eval_shape(lambda p, x: model.encode(p, x).moments, params, image)
    assert moments.shape == (2, *model.latent_shape[:-1], 2 * model.latent_shape[-1])
    state_shardings(sharding.make_mesh(configs.MeshConfig(data=-1, fsdp=2, tensor=2)), params)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTARTED)
@pytest.mark.usefixtures("one_device")
def test_its_third_step_is_the_same_after_a_restart(name: str, data_cache: Path, tmp_path: Path):
    experiment = shrink(configs.load_experiment(name), data_cache)
    whole = train(experiment, tmp_path / "whole")
    # As a kill between step 2 and step 3 would leave it.
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for stage in ("autoencoder", "diffusion"):
        (tmp_path / "broken" / "checkpoints" / stage / "00000003.json").unlink()
    resumed = train(experiment, tmp_path / "broken")
    for one, other in zip(whole, resumed, strict=True):
        assert int(one.step) == 3
        assert_bit_equal(one, other)


def train(experiment: configs.Experiment, run_dir: Path) -> tuple[TrainState, TrainState]:
    """Both stages, without held-out losses and pictures, as far as they are not done yet."""
    work = open_workspace(experiment, run_dir)
    first = run(quiet(make_autoencoder_stage(work)), work)
    autoencoder = first.model_params
    latents = LatentReader(work, autoencoder)
    frozen = jax.device_put({**autoencoder, **latents.statistics()}, sharding.replicated(work.mesh))
    stage = make_diffusion_stage(work, latents, frozen, lambda state, step: None)
    return first, run(quiet(stage), work)


def quiet(stage: Stage) -> Stage:
    return dataclasses.replace(stage, evaluate=lambda state: {}, draw=lambda state, step: None)


def run(stage: Stage, work: Workspace) -> TrainState:
    return run_stage(stage, work.run, work.mesh, work.root)


def assert_bit_equal(one: TrainState, other: TrainState) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
