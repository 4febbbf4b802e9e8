"""The second stage of a run: how the latent diffusion model is started, evaluated and shown."""

from collections.abc import Callable

import jax
import numpy as np

from ldm_jax import sharding
from ldm_jax.model import Params
from ldm_jax.training.diffusion_step import condition_inputs, heldout_loss
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.loop import Scoring, Stage
from ldm_jax.training.program import diffusion_program
from ldm_jax.training.state import TrainState
from ldm_jax.training.workspace import Workspace

MAX_HELDOUT = 2048  # pictures of the test split in one held-out loss


def make_diffusion_stage(
    work: Workspace,
    latents: LatentReader,
    frozen: Params,
    draw: Callable[[TrainState, int], None],
    initial: Params | None = None,
    scoring: Scoring | None = None,
) -> Stage:
    """The stage that trains denoiser and conditioner on latents, from `initial` parameters where there are some.

    `frozen` holds `autoencoder` and `latent`, and `conditioner` where that is not trained.
    """
    experiment = work.experiment
    program = diffusion_program(work.model, experiment, work.mesh)
    loss_of = jax.jit(lambda params, batch: heldout_loss(work.model, experiment.diffusion, params, batch, work.root))

    def evaluate(state: TrainState) -> dict[str, float]:
        losses: list[np.ndarray] = []
        for batch in latents.heldout_batches(experiment.training.batch_size):
            given = {name: batch[name] for name in ("moments", "sample_index")}
            loss = loss_of(state.model_params, given | condition_inputs(work.model, batch))
            losses.append(sharding.to_host(loss)[sharding.to_host(batch["valid"])])
            if sum(map(len, losses)) >= MAX_HELDOUT:
                break
        return {"heldout_loss": float(np.mean(np.concatenate(losses)))}

    return Stage(
        name="diffusion",
        training=experiment.training,
        frozen=frozen,
        initial=initial or {},
        init=program.init,
        step=program.step,
        batches=latents.train_batches,
        evaluate=evaluate,
        draw=draw,
        scoring=scoring,
    )
