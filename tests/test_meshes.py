"""A step on any mesh: the same losses for the same global batches, and each device holds its share and no more."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_experiment

from ldm_jax import rng, sharding
from ldm_jax.config import Experiment, MeshConfig, TrainingConfig
from ldm_jax.errors import UserError
from ldm_jax.model import LatentDiffusion, make_model
from ldm_jax.planning.collectives import find_collectives
from ldm_jax.planning.hlo import parse_program
from ldm_jax.planning.request import StageName
from ldm_jax.planning.steps import abstract_step
from ldm_jax.training.autoencoder_stage import make_autoencoder_stage
from ldm_jax.training.diffusion_stage import make_diffusion_stage
from ldm_jax.training.diffusion_step import make_diffusion_loss
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.loop import Stage, run_stage
from ldm_jax.training.optimizers import make_optimizer
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import make_step
from ldm_jax.training.workspace import Workspace, open_workspace

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "mixed": MeshConfig(data=2, fsdp=2, tensor=2),
}
STEPS = 20


@pytest.fixture(autouse=True)
def small_parameters_are_split_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "MIN_FSDP_SIZE", 64)


def experiment_on(mesh: MeshConfig, data_cache: Path) -> Experiment:
    """Twenty steps of smooth losses: an L1 loss turns the last bit of an error into another gradient."""
    tiny = tiny_experiment(data_cache)
    training = dataclasses.replace(
        tiny.training, num_steps=STEPS, gradient_accumulation=1, checkpoint_every=STEPS, log_every=1
    )
    first = dataclasses.replace(tiny.first_stage, training=training, reconstruction_loss="l2")
    return dataclasses.replace(tiny, mesh=mesh, training=training, first_stage=first)


def autoencoder_stage(work: Workspace) -> Stage:
    return make_autoencoder_stage(work)


def diffusion_stage(work: Workspace) -> Stage:
    params = random_params(work.model)
    frozen = sharding.place(work.mesh, {name: params[name] for name in ("autoencoder", "latent")})
    latents = LatentReader(work, {"autoencoder": frozen["autoencoder"]})
    return make_diffusion_stage(work, latents, frozen, lambda state, step: None)


def curve(
    make_stage: Callable[[Workspace], Stage], mesh: MeshConfig, data_cache: Path, run_dir: Path
) -> tuple[list[float], TrainState]:
    """Losses of all steps, and the last state."""
    work = open_workspace(experiment_on(mesh, data_cache), run_dir)
    stage = dataclasses.replace(make_stage(work), evaluate=lambda state: {}, draw=lambda state, step: None)
    state = run_stage(stage, work.run, work.mesh, work.root)
    return [line["loss"] for line in read_metrics(work.run.metrics_file)], state


@pytest.mark.slow
@pytest.mark.parametrize("make_stage", [autoencoder_stage, diffusion_stage])
def test_every_mesh_gives_the_losses_of_one_device(
    make_stage: Callable[[Workspace], Stage], data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as alone:
        first = jax.devices()[:1]
        alone.setattr(jax, "devices", lambda *_: first)
        expected, _ = curve(make_stage, MeshConfig(), data_cache, tmp_path / "one")
    assert len(expected) == STEPS
    for name, mesh in MESHES.items():
        losses, state = curve(make_stage, mesh, data_cache, tmp_path / name)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=name)
        for leaf in jax.tree.leaves((state.params, state.ema_params, state.opt_state)):
            assert len(leaf.sharding.device_set) == 8
        split = {axis for leaf in jax.tree.leaves(state.params) for axis in leaf.sharding.spec if axis is not None}
        assert split == {axis for axis in ("fsdp", "tensor") if getattr(mesh, axis) > 1}


@pytest.mark.slow
def test_a_whole_state_under_fsdp_takes_an_eighth_of_each_device(data_cache: Path):
    """Parameters, moving averages and moments, by what the compiler reports of the whole step."""
    tiny = tiny_experiment(data_cache)
    wide = dataclasses.replace(tiny.denoiser, base_channels=64, num_groups=8)
    model = make_model(dataclasses.replace(tiny, denoiser=wide))
    whole, share = (state_bytes(tiny, model, mesh) for mesh in (MeshConfig(data=8), MESHES["fsdp"]))
    assert whole / 8 <= share <= whole / 7


@pytest.mark.parametrize("stage", [pytest.param("autoencoder", marks=pytest.mark.slow), "diffusion"])
def test_a_step_gathers_every_parameter_once_and_nothing_else(stage: StageName, data_cache: Path):
    """Neither activations, nor gradients for their norms, nor parameters a second time for the gradient."""
    tiny = tiny_experiment(data_cache)
    mesh = sharding.make_mesh(MESHES["fsdp"])
    step = abstract_step(tiny, stage, mesh)
    program = parse_program(step.function.lower(*step.arguments).compile().as_text())
    found = find_collectives(program, {axis: int(size) for axis, size in mesh.shape.items()}, None)
    gathered = sum(collective.num_bytes for collective in found if collective.kind == "all-gather")
    params = jax.tree.leaves(step.arguments[0].params)
    split = sum(4 * leaf.size for leaf in params if "fsdp" in leaf.sharding.spec)
    assert split > 0.5 * sum(4 * leaf.size for leaf in params)
    ids = 4 * step.arguments[1]["tokens"].size if stage == "diffusion" else 0  # for the gradient of their table
    assert gathered == split + ids


def state_bytes(experiment: Experiment, model: LatentDiffusion, config: MeshConfig) -> int:
    """Bytes of arguments on one device of a compiled step, without those of the batch."""
    mesh = sharding.make_mesh(config)
    optimizer = make_optimizer(experiment.optimizer, 10)
    loss = make_diffusion_loss(model, experiment.diffusion)
    step = make_step(loss, optimizer, TrainingConfig(batch_size=8))

    def init(root: Any) -> TrainState:
        return TrainState.create(model.init_denoiser(root), model.init_latent(), optimizer)

    root = rng.root_key(0)
    abstract = jax.eval_shape(init, root)
    placed = sharding.state_shardings(mesh, abstract)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed)
    batch = {
        "moments": np.zeros((8, *model.latent_shape[:-1], 2 * model.latent_shape[-1]), np.float32),
        "sample_index": np.arange(8, dtype=np.int32),
        **{name: np.asarray(value) for name, value in model.null_inputs(8).items()},
    }
    batch = sharding.put_batch(mesh, batch)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh))).lower(
        state, batch, root
    )
    memory = compiled.compile().memory_analysis()
    others = sum(x.nbytes // 8 for x in batch.values()) + root.nbytes
    return memory.argument_size_in_bytes - others


def test_a_tensor_axis_that_splits_nothing_is_refused_before_anything_is_written(
    data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    six = jax.devices()[:6]
    monkeypatch.setattr(jax, "devices", lambda *_: six)
    message = (
        r"--mesh\.tensor 6 splits no layer of this model \(their sizes: 8, .*\); sizes that work on 6 devices: 1, 2"
    )
    with pytest.raises(UserError, match=message):
        open_workspace(experiment_on(MeshConfig(data=1, tensor=6), data_cache), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_imported_start_lies_in_shares_from_the_first(data_cache: Path):
    mesh = sharding.make_mesh(MESHES["fsdp"])
    params = random_params(make_model(tiny_experiment(data_cache)))
    placed = sharding.place(mesh, jax.tree.map(np.asarray, params))
    split = [leaf for leaf in jax.tree.leaves(placed) if "fsdp" in leaf.sharding.spec]
    assert split and all(leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in split)
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    again = sharding.place(sharding.make_mesh(MESHES["mixed"]), placed)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(jnp.asarray(a), b), again, params)
