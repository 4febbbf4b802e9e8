"""The step that is planned is the step that is trained, to the letter of its program."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny import random_perceptual, tiny_experiment

from ldm_jax import sharding
from ldm_jax.autoencoder import perceptual_weights
from ldm_jax.config import Experiment, MeshConfig, PerceptualConfig, load_experiment
from ldm_jax.errors import UserError
from ldm_jax.flops import count_jaxpr
from ldm_jax.model import LatentDiffusion
from ldm_jax.planning.compiler import argument_bytes
from ldm_jax.planning.request import StageName, with_batch_size
from ldm_jax.planning.steps import abstract_step
from ldm_jax.training.autoencoder_stage import make_autoencoder_stage
from ldm_jax.training.diffusion_stage import make_diffusion_stage
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.loop import Stage
from ldm_jax.training.program import jit_step
from ldm_jax.training.workspace import Workspace, open_workspace


class NoLatents(LatentReader):
    """Batches with moments that nothing has encoded."""

    def __init__(self, work: Workspace) -> None:
        self.work = work

    def train_batches(self, start_step: int) -> Any:
        model: LatentDiffusion = self.work.model
        *spatial, channels = model.latent_shape
        for batch in self.work.train_batches(self.work.train, self.work.experiment.training, "diffusion", start_step):
            shape = (len(batch["sample_index"]), *spatial, 2 * channels)
            moments = jax.device_put(jnp.zeros(shape), sharding.batch_sharding(self.work.mesh))
            yield {**batch, "moments": moments}


@pytest.fixture
def work(data_cache: Path, tmp_path: Path) -> Workspace:
    experiment = dataclasses.replace(tiny_experiment(data_cache), mesh=MeshConfig(data=4, fsdp=2))
    return open_workspace(experiment, tmp_path / "run")


def stage_of(work: Workspace, name: StageName) -> Stage:
    if name == "autoencoder":
        return make_autoencoder_stage(work)
    frozen = {**work.model.init_autoencoder(work.root), **work.model.init_latent()}
    return make_diffusion_stage(work, NoLatents(work), frozen, lambda state, step: None)


@pytest.mark.parametrize("name", ["autoencoder", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_a_planned_step_is_the_trained_one(work: Workspace, name: StageName):
    stage = stage_of(work, name)
    state = jax.eval_shape(stage.init, work.root, stage.frozen, stage.initial)
    shardings = sharding.state_shardings(work.mesh, state)
    placed = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), state, shardings)
    trained = jit_step(stage.step, shardings, work.mesh).lower(placed, next(iter(stage.batches(0))), work.root)
    planned = abstract_step(work.experiment, name, work.mesh)
    assert planned.function.lower(*planned.arguments).as_text() == trained.as_text()


@pytest.mark.slow
def test_lpips_is_planned_without_its_weights(data_cache: Path, mesh: Any, monkeypatch: pytest.MonkeyPatch):
    """Their shapes are enough; they are arguments of the program, whole on every chip, and not trained."""
    monkeypatch.setattr(perceptual_weights, "perceptual_package", lambda net: None)
    tiny = tiny_experiment(data_cache)
    data = dataclasses.replace(tiny.data, image_size=32)
    plain, lpips = (
        dataclasses.replace(tiny, data=data, first_stage=dataclasses.replace(tiny.first_stage, perceptual=perceptual))
        for perceptual in (PerceptualConfig(), PerceptualConfig(weight=1.0, net="alexnet"))
    )
    without, planned = (abstract_step(experiment, "autoencoder", mesh) for experiment in (plain, lpips))
    assert planned.num_parameters == without.num_parameters
    constants = planned.arguments[0].constants["perceptual"]
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)  # noqa: E731
    assert shapes(constants) == shapes(random_perceptual("alexnet"))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(constants))
    operations = [count_jaxpr(step.function.trace(*step.arguments).jaxpr.jaxpr) for step in (without, planned)]
    assert operations[1] > 2 * operations[0]


@pytest.fixture
def mesh() -> Any:
    return sharding.make_mesh(MeshConfig(data=4, fsdp=2))


def test_sampling_is_planned_with_whole_parameters(data_cache: Path, mesh: Any):
    step = abstract_step(tiny_experiment(data_cache), "sampling", mesh)
    pictures = jax.eval_shape(step.function, *step.arguments)
    assert pictures.shape == (8, 8, 8, 3)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(step.arguments[0]))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.arguments[0]))
    assert whole < argument_bytes(step.arguments) < 1.5 * whole  # with the numbers of the sampler


@pytest.mark.slow
def test_fsdp_takes_the_large_parameters_off_each_chip():
    experiment = load_experiment("smoke")
    whole, split = (
        argument_bytes(abstract_step(experiment, "diffusion", sharding.make_mesh(config)).arguments[0])
        for config in (MeshConfig(data=8), MeshConfig(data=1, fsdp=8))
    )
    assert split < whole / 2


def test_a_batch_that_cannot_be_split_is_refused(data_cache: Path, mesh: Any):
    experiment: Experiment = with_batch_size(tiny_experiment(data_cache), "diffusion", 12)
    with pytest.raises(UserError, match="batch_size=12 cannot be split over 8 devices"):
        abstract_step(experiment, "diffusion", mesh)
