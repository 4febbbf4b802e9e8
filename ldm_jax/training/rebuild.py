"""An average of any width, rebuilt from the snapshots of a run: one snapshot in memory at a time."""

import logging
from typing import Any

import jax
import numpy as np

from ldm_jax.config import TrainingConfig
from ldm_jax.errors import UserError
from ldm_jax.model import Params
from ldm_jax.training.checkpoint_contents import read_tree
from ldm_jax.training.checkpoints import Checkpoints
from ldm_jax.training.power_average import gamma_of, profile_weights
from ldm_jax.training.seals import DamagedCheckpoint
from ldm_jax.training.state import profile_name

logger = logging.getLogger(__name__)

SMALLEST, LARGEST = 0.01, 0.28
"""Relative widths that can be asked for; 0.289 is that of an average of all steps alike."""

_OFF = 0.05


def rebuild_average(
    snapshots: Checkpoints, config: TrainingConfig, model: Params, sigma_rel: float, end: int
) -> Params:
    """What of a model is trained, averaged with another width.

    Args:
        snapshots: of the stage.
        config: of the stage.
        model: abstract parameters of the whole model, with shardings.
        sigma_rel: relative width.
        end: step up to which it is averaged; the newest snapshot up to there is its end.

    Raises:
        UserError: the run kept no averages, none of its snapshots is whole, or the width is out of range.
    """
    where = snapshots.directory
    if not SMALLEST <= sigma_rel <= LARGEST:
        raise UserError(f"--ema-sigma-rel={sigma_rel} must be from {SMALLEST} to {LARGEST}")
    if not config.ema_profiles:
        raise UserError(
            f"the run of {where.parent.parent} has kept no averages from which others could be rebuilt; train with "
            "--training.ema-profiles 0.05 0.1"
        )
    steps = [step for step in snapshots.steps() if step <= end and _is_whole(snapshots, step)]
    if not steps:
        raise UserError(f"{where} has no snapshot up to step {end}; one is saved every training.snapshot_every steps")
    count = len(config.ema_profiles)
    ends = np.repeat(np.asarray(steps, np.float64), count)
    gammas = np.tile([gamma_of(width) for width in config.ema_profiles], len(steps))
    weights, off = profile_weights(ends, gammas, steps[-1], gamma_of(sigma_rel))
    told = (sigma_rel, steps[-1], len(steps), 100 * off)
    logger.info("the average of sigma_rel=%g at step %d is made of %d snapshots; its profile is off by %.2g %%", *told)
    if off > _OFF:
        logger.warning("sigma_rel=%g is not what these snapshots are for: use a width nearer to those kept", sigma_rel)
    return _combine(snapshots, steps, weights.reshape(len(steps), count), model)


def _is_whole(snapshots: Checkpoints, step: int) -> bool:
    try:
        snapshots.verify(step)
    except DamagedCheckpoint as error:
        logger.warning("%s; it is left out", error)
        return False
    return True


def _combine(snapshots: Checkpoints, steps: list[int], weights: np.ndarray, model: Params) -> Params:
    saved = read_tree(snapshots.folder(steps[-1]))["profiles"]
    of_model = {name: part for name, part in model.items() if name in saved[profile_name(0)]}
    wanted = {"profiles": dict.fromkeys(saved, of_model)}  # without what the first stage was trained against

    @jax.jit
    def add(total: Any, profile: Any, weight: Any) -> Any:
        return jax.tree.map(lambda t, p: t + weight * p, total, profile)

    total: Any = None
    for step, row in zip(steps, weights, strict=True):
        profiles = snapshots.restore(step, wanted, in_part=True)["profiles"]
        for i, weight in enumerate(row):
            profile, factor = profiles[profile_name(i)], np.float32(weight)
            total = jax.tree.map(lambda p, f=factor: f * p, profile) if total is None else add(total, profile, factor)
    return total
