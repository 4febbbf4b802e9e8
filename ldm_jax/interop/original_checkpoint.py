"""A whole latent diffusion model in one file of the original code: first stage, conditioning stage and U-Net.

Tensors are called `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*` (sgm:
`conditioner.embedders.N.*`) and, for the moving averages of the U-Net, `model_ema.*`. Besides them there are the
buffers of `original_buffers`.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import jax
import numpy as np

from ldm_jax.conditioning.build import make_conditioner
from ldm_jax.config import (
    ClipTextConditioning,
    Conditioning,
    EmbeddingConditioning,
    SdxlConditioning,
    SpatialConditioning,
    TextConditioning,
    Unconditional,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.mapping import (
    PLAIN,
    Prefixed,
    Slot,
    TensorSource,
    dense_as_convolution,
    read_params,
    write_tensors,
)
from ldm_jax.interop.original_autoencoder import (
    OriginalAutoencoder,
    autoencoder_tensors,
    has_averages,
    read_autoencoder,
)
from ldm_jax.interop.original_buffers import KNOWN, engine_buffers, schedule_buffers
from ldm_jax.interop.original_project import OriginalProject, latent_params
from ldm_jax.interop.original_unet import read_unet, unet_tensors
from ldm_jax.model import Params

logger = logging.getLogger(__name__)

Weights = Literal["auto", "ema", "raw"]
"""Which parameters: moving averages, those that were trained, or what the original code would use."""
Hook = TypeVar("Hook")
TextConfig = TextConditioning | ClipTextConditioning
ReadText = Callable[[TensorSource, TextConfig, str], Params]
"""`read(source, config, where)`: the parameters of one text encoder, whose prefix the source has taken off."""
WriteText = Callable[[Params, TextConfig], Iterator[tuple[str, np.ndarray]]]
"""The inverse of `ReadText`."""

UNET, AVERAGES, FIRST_STAGE = "model.diffusion_model.", "model_ema.diffusion_model", "first_stage_model."


def read_checkpoint(
    source: TensorSource,
    project: OriginalProject,
    *,
    where: str,
    weights: Weights = "auto",
    read_text: ReadText | None = None,
) -> Params:
    """The parameters of a `LatentDiffusion` from a file that must hold exactly them, and known buffers.

    Args:
        source: the file.
        project: what it holds.
        where: the file, for messages.
        weights: `auto` takes the U-Net's moving averages where the file has them and the project uses them, and the
            first stage as it was trained; `ema` takes the averages of both that the file has.
        read_text: reads a text encoder.

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
        "conditioner": _read_conditioner(source, project, where, read_text),
        "latent": latent_params(_scale_factor(source, project), project.autoencoder.config.latent_channels),
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


def checkpoint_tensors(
    params: Params, project: OriginalProject, write_text: WriteText | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a file, the inverse of `read_checkpoint`, with the buffers that the original code has."""
    for name, tensor in unet_tensors(params["denoiser"], project.unet):
        yield UNET + name, tensor
    for name, tensor in autoencoder_tensors(params["autoencoder"], project.autoencoder):
        yield FIRST_STAGE + name, tensor
    for prefix, config, part in _conditioner_parts(project):
        values = params["conditioner"][part] if part else params["conditioner"]
        if isinstance(config, TextConditioning | ClipTextConditioning):
            tensors = _needed(write_text, config)(values, config)
        else:
            tensors = write_tensors(values, conditioner_slot)
        yield from ((prefix + name, tensor) for name, tensor in tensors)
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
    modules = [UNET, AVERAGES, FIRST_STAGE, *(prefix for prefix, _, _ in _conditioner_parts(project))]
    modules += [f"{stage}." for stage in project.other_stages]
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


def _conditioner_parts(project: OriginalProject) -> list[tuple[str, Conditioning, str]]:
    """Prefix, configuration and key of each conditioner with parameters; the key is empty where it is the only one."""
    conditioning = project.conditioning
    if isinstance(conditioning, SdxlConditioning):
        parts = (("0", conditioning.first, "first"), ("1", conditioning.second, "second"))
        return [(f"conditioner.embedders.{i}.", config, part) for i, config, part in parts]
    as_it_comes = isinstance(conditioning, SpatialConditioning) and conditioning.out_channels is None
    if isinstance(conditioning, Unconditional | EmbeddingConditioning) or as_it_comes or project.has_labels_only:
        return []
    return [("cond_stage_model." if project.library == "ldm" else "conditioner.embedders.0.", conditioning, "")]


def conditioner_slot(path: str) -> Slot:
    """The format of class tables (`ClassEmbedder`) and maps (`SpatialRescaler`, whose mapper is a 1x1 convolution)."""
    if path == "embedding/embedding":
        return Slot("embedding.weight", PLAIN)
    return Slot("channel_mapper.weight", dense_as_convolution(2))


def _abstract_conditioner(project: OriginalProject) -> Params:
    latent = (project.image_size // project.autoencoder.config.downsample_factor,) * 2
    module = make_conditioner(project.conditioning, "float32", image_size=project.image_size, latent_size=latent)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), module.null_inputs(1)))["params"]


def _needed(hook: Hook | None, config: TextConfig) -> Hook:
    if hook is None:
        raise UserError(f"{type(config).__name__} needs the format of its text encoder, and none was given")
    return hook


def _read_conditioner(source: TensorSource, project: OriginalProject, where: str, read_text: ReadText | None) -> Params:
    if project.has_labels_only:
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), _abstract_conditioner(project))
    params: Params = {}
    for prefix, config, part in _conditioner_parts(project):
        view, place = Prefixed(source, prefix), f"{where} ({prefix}*)"
        if isinstance(config, TextConditioning | ClipTextConditioning):
            values = _needed(read_text, config)(view, config, place)
        else:
            values = read_params(view, conditioner_slot, _abstract_conditioner(project), where=place)
        params |= {part: values} if part else values
    return params
