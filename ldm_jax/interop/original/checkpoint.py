"""A whole latent diffusion model in one file of the original code: first stage, conditioning stage and U-Net.

Tensors are called `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*` (sgm:
`conditioner.embedders.N.*`) and, for the moving averages of the U-Net, `model_ema.*`. Besides them there are the
buffers of `buffers`.
"""

import logging
from collections.abc import Iterator
from typing import Literal

import jax
import numpy as np

from ldm_jax.conditioning.build import make_conditioner
from ldm_jax.config import EmbeddingConditioning, SdxlConditioning, SpatialConditioning, Unconditional
from ldm_jax.errors import UserError
from ldm_jax.interop.latents import latent_params
from ldm_jax.interop.mapping import (
    PLAIN,
    Prefixed,
    Slot,
    TensorSource,
    dense_as_convolution,
    read_params,
    write_tensors,
)
from ldm_jax.interop.original.autoencoder import (
    OriginalAutoencoder,
    autoencoder_tensors,
    has_averages,
    read_autoencoder,
)
from ldm_jax.interop.original.buffers import KNOWN, engine_buffers, schedule_buffers
from ldm_jax.interop.original.project import OriginalProject
from ldm_jax.interop.original.text import read_text_stage_params, write_text_stage_params
from ldm_jax.interop.original.text_options import TextConfig, text_stage_of
from ldm_jax.interop.original.unet import read_unet, unet_tensors
from ldm_jax.model import Params

logger = logging.getLogger(__name__)

Weights = Literal["auto", "ema", "raw"]
"""Which parameters: moving averages, those that were trained, or what the original code would use."""

UNET, AVERAGES, FIRST_STAGE = "model.diffusion_model.", "model_ema.diffusion_model", "first_stage_model."


def read_checkpoint(source: TensorSource, project: OriginalProject, *, where: str, weights: Weights = "auto") -> Params:
    """The parameters of a `LatentDiffusion` from a file that must hold exactly them, and known buffers.

    Args:
        source: the file.
        project: what it holds.
        where: the file, for messages.
        weights: `auto` takes the U-Net's moving averages where the file has them and the project uses them, and the
            first stage as it was trained; `ema` takes the averages of both that the file has.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; or there are no moving averages.
    """
    _require_known(source, project, where)
    ema = choose_averages(any(name.startswith(AVERAGES) for name in source.names()), weights, project.use_ema, where)
    unet = Prefixed(source, AVERAGES if ema else UNET)
    first_stage = Prefixed(source, FIRST_STAGE)
    first_stage_ema = weights == "ema" and has_averages(first_stage)
    return {
        "denoiser": read_unet(unet, project.unet, where=f"{where} ({unet.prefix}*)", ema=ema),
        "autoencoder": read_autoencoder(
            first_stage, project.autoencoder, where=f"{where} ({FIRST_STAGE}*)", ema=first_stage_ema
        ),
        "conditioner": _read_conditioner(source, project, where),
        "latent": latent_params(
            (0.0,), (1.0 / _scale_factor(source, project),), project.autoencoder.config.latent_channels
        ),
    }


def read_first_stage(
    source: TensorSource, autoencoder: OriginalAutoencoder, *, where: str, weights: Weights = "auto"
) -> Params:
    """The parameters of a first stage that has a file of its own; `auto` takes moving averages where there are any.

    Raises:
        UserError: tensors are missing, unexpected or of another shape; or there are no moving averages.
    """
    ema = choose_averages(has_averages(source), weights, True, where)
    return read_autoencoder(source, autoencoder, where=where, ema=ema)


def checkpoint_tensors(params: Params, project: OriginalProject) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a file, the inverse of `read_checkpoint`, with the buffers that the original code has."""
    for name, tensor in unet_tensors(params["denoiser"], project.unet):
        yield UNET + name, tensor
    for name, tensor in autoencoder_tensors(params["autoencoder"], project.autoencoder):
        yield FIRST_STAGE + name, tensor
    if prefix := _conditioner_prefix(project):
        for name, tensor in _conditioner_tensors(params["conditioner"], project):
            yield prefix + name, tensor
    buffers = engine_buffers if project.library == "sgm" else schedule_buffers
    yield from buffers(project.diffusion.schedule)


def choose_averages(present: bool, weights: Weights, used: bool, where: str) -> bool:
    """Whether to read moving averages.

    Raises:
        UserError: they are wanted and not there.
    """
    if weights == "ema" and not present:
        raise UserError(f"{where} has no moving averages (model_ema.*); use weights=raw")
    return weights == "ema" or (weights == "auto" and present and used)


def _scale_factor(source: TensorSource, project: OriginalProject) -> float:
    """The factor that the file holds where it was measured (scale_by_std), else that of the project."""
    if "scale_factor" not in set(source.names()):
        return project.scale_factor
    return float(np.asarray(source.read("scale_factor"), np.float64).reshape(-1)[0])


def _require_known(source: TensorSource, project: OriginalProject, where: str) -> None:
    prefix = _conditioner_prefix(project)
    modules = [UNET, AVERAGES, FIRST_STAGE, *([prefix] if prefix else []), *(f"{s}." for s in project.other_stages)]
    if project.first_stage_conditions:
        modules.append("cond_stage_model.")  # the first stage once more
    names = sorted(source.names())
    unknown = [name for name in names if not name.startswith(tuple(modules)) and name not in KNOWN]
    if unknown:
        listing = "\n  ".join(unknown[:20] + ([f"and {len(unknown) - 20} more"] if len(unknown) > 20 else []))
        raise UserError(f"{where} holds tensors that its project file does not describe:\n  {listing}")
    for stage in project.other_stages:
        if left_out := [name for name in names if name.startswith(f"{stage}.")]:
            logger.info("%s: %d tensors of %s are left out", where, len(left_out), stage)


# --- conditioning stage ----------------------------------------------------------------------------------------------


def _conditioner_prefix(project: OriginalProject) -> str | None:
    """Prefix of the conditioner's tensors; None where it has none."""
    conditioning = project.conditioning
    as_it_comes = isinstance(conditioning, SpatialConditioning) and conditioning.out_channels is None
    if isinstance(conditioning, Unconditional | EmbeddingConditioning) or as_it_comes or project.has_labels_only:
        return None
    if isinstance(conditioning, SdxlConditioning):
        return "conditioner."  # of both, `embedders.0` and `embedders.1`
    return "cond_stage_model." if project.library == "ldm" else "conditioner.embedders.0."


def conditioner_slot(path: str) -> Slot:
    """The format of class tables (`ClassEmbedder`) and maps (`SpatialRescaler`, whose mapper is a 1x1 convolution)."""
    if path == "embedding/embedding":
        return Slot("embedding.weight", PLAIN)
    return Slot("channel_mapper.weight", dense_as_convolution(2))


def _abstract_conditioner(project: OriginalProject) -> Params:
    latent = (project.image_size // project.autoencoder.config.downsample_factor,) * 2
    module = make_conditioner(project.conditioning, "float32", image_size=project.image_size, latent_size=latent)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), module.null_inputs(1)))["params"]


def _read_conditioner(source: TensorSource, project: OriginalProject, where: str) -> Params:
    conditioning, prefix = project.conditioning, _conditioner_prefix(project)
    if project.has_labels_only:
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), _abstract_conditioner(project))
    if prefix is None:
        return {}
    view, place = Prefixed(source, prefix), f"{where} ({prefix}*)"
    if isinstance(conditioning, TextConfig):
        return read_text_stage_params(view, text_stage_of(conditioning), place)
    return read_params(view, conditioner_slot, _abstract_conditioner(project), where=place)


def _conditioner_tensors(params: Params, project: OriginalProject) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(project.conditioning, TextConfig):
        return write_text_stage_params(params, text_stage_of(project.conditioning))
    return write_tensors(params, conditioner_slot)
