"""The first stage of a run: how the autoencoder is started, evaluated and shown."""

import logging
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax import sharding
from ldm_jax.autoencoder.likelihood import mean_error
from ldm_jax.autoencoder.perceptual import Lpips
from ldm_jax.config import FirstStageConfig
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.nn.apply import apply
from ldm_jax.pictures import draw_grid, to_uint8
from ldm_jax.training import processes
from ldm_jax.training.alarms import Alarms, first_stage_alarms
from ldm_jax.training.loop import Stage
from ldm_jax.training.perceptual import fingerprint_constants, read_constants
from ldm_jax.training.program import autoencoder_program
from ldm_jax.training.state import TrainState
from ldm_jax.training.workspace import Workspace

logger = logging.getLogger(__name__)

_GRID_COLUMNS = 8


def make_autoencoder_stage(work: Workspace) -> Stage:
    """The stage that trains the autoencoder on pictures."""
    config = work.experiment.first_stage
    program = autoencoder_program(work.model, work.experiment, work.mesh)
    compare = jax.jit(lambda state, image: _compare(work.model, config, state, image))

    def constants() -> Params:
        found = read_constants(config)
        work.run.check_perceptual(fingerprint_constants(found))
        logger.info("autoencoder: %s", _describe(config))
        return found

    def evaluate(state: TrainState) -> dict[str, float]:
        found: dict[str, list[np.ndarray]] = {}
        for batch in work.epoch(work.test, config.training.batch_size):
            valid = sharding.to_host(batch["valid"])
            for name, distances in compare(_evaluated(state), batch["image"])[1].items():
                found.setdefault(name, []).append(sharding.to_host(distances)[valid])
        return {name: float(np.mean(np.concatenate(distances))) for name, distances in found.items()}

    def draw(state: TrainState, step: int) -> None:
        batch = next(work.epoch(work.test, config.training.batch_size))
        count = min(int(np.sum(sharding.to_host(batch["valid"]))), 2 * _GRID_COLUMNS)
        decoded = compare(_evaluated(state), batch["image"])[0]
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
        alarms=Alarms(partial(first_stage_alarms, config, math.prod(work.model.latent_shape[:-1]))),
        constants=constants,
        is_followed=True,
    )


def _evaluated(state: TrainState) -> TrainState:
    """Without what only training needs."""
    return state._replace(params={}, opt_state=())


def _compare(
    model: LatentDiffusion, config: FirstStageConfig, state: TrainState, image: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h w c"], dict[str, Float[Array, " b"]]]:
    """Decoded mode of the averaged model's posterior, and its distances for each picture by name."""
    identity: Params = {**state.model_params, **model.init_latent()}  # the autoencoder's own latents
    decoded = model.decode(identity, model.encode(identity, image).mode())
    distances = {"heldout_loss": mean_error(config.reconstruction_loss, jnp.asarray(image), decoded)}
    if "perceptual" in state.constants:
        distances["heldout_lpips"] = apply(Lpips(config.perceptual.net), state.constants["perceptual"], image, decoded)
    return decoded, distances


def _describe(config: FirstStageConfig) -> str:
    """What the reconstructions are trained by, in words."""
    perceptual, judge = config.perceptual, config.judge
    lpips = f"LPIPS ({perceptual.net}) of weight {perceptual.weight:g}" if perceptual.weight else "no LPIPS (weight 0)"
    against = "no discriminator" if judge is None else f"a discriminator from step {judge.start_step}"
    return f"trained by {config.reconstruction_loss}, {lpips} and {against}"
