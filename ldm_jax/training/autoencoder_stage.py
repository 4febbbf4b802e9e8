"""The first stage of a run: how the autoencoder is started, evaluated and shown."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax import sharding
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.pictures import draw_grid, to_uint8
from ldm_jax.training import processes
from ldm_jax.training.alarms import Alarms, first_stage_alarms
from ldm_jax.training.autoencoder_step import reconstruction_distance
from ldm_jax.training.loop import Stage
from ldm_jax.training.program import autoencoder_program
from ldm_jax.training.state import TrainState
from ldm_jax.training.workspace import Workspace

_GRID_COLUMNS = 8


def make_autoencoder_stage(work: Workspace) -> Stage:
    """The stage that trains the autoencoder on pictures."""
    config = work.experiment.first_stage
    program = autoencoder_program(work.model, work.experiment)
    reconstruct = jax.jit(lambda params, image: _reconstruct(work.model, params, image))

    def evaluate(state: TrainState) -> dict[str, float]:
        errors = []
        for batch in work.epoch(work.test, config.training.batch_size):
            error = reconstruct(state.model_params, batch["image"])[1]
            errors.append(sharding.to_host(error)[sharding.to_host(batch["valid"])])
        return {"heldout_loss": float(np.mean(np.concatenate(errors)))}

    def draw(state: TrainState, step: int) -> None:
        batch = next(work.epoch(work.test, config.training.batch_size))
        count = min(int(np.sum(sharding.to_host(batch["valid"]))), 2 * _GRID_COLUMNS)
        decoded = reconstruct(state.model_params, batch["image"])[0]
        pictures = [to_uint8(sharding.to_host(image))[:count] for image in (batch["image"], decoded)]
        if not processes.is_first():
            return
        rows, labels = [], []
        for begin in range(0, count, _GRID_COLUMNS):
            for kind, shown in zip(("picture", "decoded"), pictures, strict=True):
                rows.append(list(shown[begin : begin + _GRID_COLUMNS]))
                labels.append(kind)
        path = work.run.samples / f"reconstruction_{step:06d}.png"
        draw_grid(rows, labels, path, footer=work.train.info.credit, tile=64)

    return Stage(
        name="autoencoder",
        training=config.training,
        frozen={},
        initial={},
        init=program.init,
        step=program.step,
        batches=lambda start: work.train_batches(work.train, config.training, "autoencoder", start),
        evaluate=evaluate,
        draw=draw,
        alarms=Alarms(lambda metrics, step: first_stage_alarms(config, metrics, step)),
    )


def _reconstruct(
    model: LatentDiffusion, params: Params, image: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h w c"], Float[Array, " b"]]:
    """Decoded mode of the posterior, and its mean absolute error for each picture."""
    identity: Any = {**params, **model.init_latent()}  # the autoencoder's own latents
    decoded = model.decode(identity, model.encode(params, image).mode())
    return decoded, reconstruction_distance(jnp.asarray(image), decoded, "l1")
