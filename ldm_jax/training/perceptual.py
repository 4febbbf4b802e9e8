"""The weights that a first stage compares pictures by: read at each start, and no part of what is trained or saved."""

from pathlib import Path

from ldm_jax.autoencoder.perceptual_weights import read_perceptual
from ldm_jax.config import FirstStageConfig
from ldm_jax.errors import UserError
from ldm_jax.model import Params, hash_params


def read_constants(config: FirstStageConfig) -> Params:
    """What the loss measures with: `perceptual`, if LPIPS has a weight.

    A configuration that asks for LPIPS is not trained without: what came out would depend on what is installed.

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
