"""What of a stage is compiled, its first state and its step, from the configuration alone: no data, no run folder."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from ldm_jax import rng, sharding
from ldm_jax.config import Experiment
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.training.autoencoder_state import abstract_constants, init_averages, init_first_stage, make_follow
from ldm_jax.training.autoencoder_step import make_autoencoder_loss
from ldm_jax.training.diffusion_step import init_history, make_diffusion_loss, make_history_follow
from ldm_jax.training.optimizers import make_first_stage_optimizer, make_optimizer
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Step, make_step


class StageProgram(NamedTuple):
    """The functions of a stage that are traced."""

    init: Callable[[Key[Array, ""], Params, Params], TrainState]
    """Root key, frozen and initial parameters to the first state; what is not among them is drawn."""
    step: Step
    constants: Params
    """Shapes of what the step is given beside its state's own (`TrainState.constants`)."""


def autoencoder_program(model: LatentDiffusion, experiment: Experiment, mesh: Mesh) -> StageProgram:
    """The first stage on the devices of a mesh."""
    config = experiment.first_stage
    optimizer = make_first_stage_optimizer(config)

    def init(root: Key[Array, ""], frozen: Params, initial: Params) -> TrainState:
        params = {**init_first_stage(model, config, rng.named_key(root, "init")), **initial}
        frozen = {**frozen, **init_averages(config, params)}
        return TrainState.create(params, frozen, optimizer, len(config.training.ema_profiles))

    loss_fn = make_autoencoder_loss(model, config)
    gather = sharding.make_gather(mesh, experiment.compute_dtype)
    step = make_step(loss_fn, optimizer, config.training, make_follow(config), gather)
    return StageProgram(init, step, abstract_constants(config))


def diffusion_program(model: LatentDiffusion, experiment: Experiment, mesh: Mesh) -> StageProgram:
    """The second stage on the devices of a mesh.

    What is `frozen` (autoencoder, latent statistics, some conditioners) is not trained.
    """
    optimizer = make_optimizer(experiment.optimizer, experiment.training.num_steps)

    def init(root: Key[Array, ""], frozen: Params, initial: Params) -> TrainState:
        params = {**model.init_denoiser(rng.named_key(root, "init")), **initial}
        trained = {name: value for name, value in params.items() if name not in frozen}
        frozen = {**frozen, **init_history(experiment.diffusion)}
        return TrainState.create(trained, frozen, optimizer, len(experiment.training.ema_profiles))

    loss_fn, follow = make_diffusion_loss(model, experiment.diffusion), make_history_follow(experiment.diffusion)
    gather = sharding.make_gather(mesh, experiment.compute_dtype)
    return StageProgram(init, make_step(loss_fn, optimizer, experiment.training, follow, gather), {})


def jit_step(step: Step, shardings: TrainState, mesh: Mesh) -> Any:
    """The step compiled for a mesh: it takes over the memory of the state that it is given, and keeps its shards."""
    out_shardings = (shardings, sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings, compiler_options=_compiler_options(mesh))


def _compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Of a step: on a CPU operations in the order that needs least memory, rather than what runs side by side.

    Each device has a core or two, which single operations fill (docs/performance.md).
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if on_cpu else None
