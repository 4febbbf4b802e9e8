"""Models of the original code on disk: a checkpoint with its project file beside it, read and written as sessions.

What text encoders need besides is kept in a folder beside the project file, which the original code does not know:
FILE.text for FILE.yaml, with the tokenizer, and the config.json of a CLIP that is none of the published ones.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax import sharding
from ldm_jax.conditioning.tokenizer import PromptEncoder
from ldm_jax.config import Conditioning
from ldm_jax.errors import UserError
from ldm_jax.files.folders import require_empty
from ldm_jax.files.json_files import read_json, write_json
from ldm_jax.files.weight_files import open_tensors
from ldm_jax.files.write_safetensors import FloatType, write_safetensors
from ldm_jax.interop.first_stages import first_stage_session
from ldm_jax.interop.latents import latent_params
from ldm_jax.interop.original.autoencoder import OriginalAutoencoder, autoencoder_tensors
from ldm_jax.interop.original.checkpoint import Weights, checkpoint_tensors, read_checkpoint, read_first_stage
from ldm_jax.interop.original.project import Unsaid, describe_autoencoder, describe_project
from ldm_jax.interop.original.project_file import read_project
from ldm_jax.interop.original.project_file_export import project_yaml
from ldm_jax.interop.original.text_options import TextConfig, model_to_write, text_stage_of
from ldm_jax.interop.original.tokenizers import read_tokenizers, write_tokenizers
from ldm_jax.model import make_model
from ldm_jax.sampling.session import Session

logger = logging.getLogger(__name__)

SUFFIXES = (".ckpt", ".safetensors", ".pt")
"""Ends of the names of checkpoints."""


def is_original(path: Path) -> bool:
    """Whether a path is a checkpoint, or a folder with a project file and a checkpoint."""
    if path.is_file():
        return path.suffix in SUFFIXES
    return bool(_checkpoints(path)) and any(path.glob("*.yaml"))


def read_original(
    path: Path, config: Path | None = None, weights: Weights = "auto", tokenizer: Path | None = None
) -> Session:
    """The model in a checkpoint, its parameters in float32, to be drawn with DDIM.

    Args:
        path: the checkpoint, or a folder that holds no other.
        config: its project file; by default the one of the same name, or the only one beside it.
        weights: moving averages (ema), the others (raw), or the first where the file has them and the model uses them.
        tokenizer: folder of the tokenizer of a text model; by default the one that `write_original` puts beside it.

    Raises:
        UserError: a file is missing, damaged or one of several, an option is not supported, or weights do not fit.
    """
    file = _checkpoint_of(path)
    config = _project_file_of(file) if config is None else config
    project = read_project(config, Unsaid(find_model=lambda name: _find_model(config, name)))
    name = path.resolve().name if path.is_dir() else path.stem
    if isinstance(project, OriginalAutoencoder):
        return _read_first_stage(file, project, name, weights)
    conditioning, encoder = _read_text(project.conditioning, tokenizer or _tokenizer_beside(config))
    with open_tensors(file) as tensors:
        params = read_checkpoint(tensors, project, where=str(file), weights=weights)
    experiment = dataclasses.replace(project, conditioning=conditioning).experiment(name)
    return Session(experiment, make_model(experiment, sharding.make_mesh(experiment.mesh)), params, encoder)


def write_original(session: Session, path: Path, dtype: FloatType | None = None) -> None:
    """Write a model or a first stage as a checkpoint and its project file, which comes last.

    Args:
        session: the model.
        path: a new folder for `model.safetensors` and `project.yaml`, or a new .safetensors beside which FILE.yaml is
            written.
        dtype: in which numbers are stored; None keeps float32.

    Raises:
        UserError: the original code has no such model, or something is there already or cannot be written.
    """
    single = path.suffix == ".safetensors"
    file, config = (path, path.with_suffix(".yaml")) if single else (path / "model.safetensors", path / "project.yaml")
    text = _text_folder(config)
    _require_free(path, file, config, text)
    if session.is_first_stage:
        project = describe_autoencoder(session.experiment)
        _warn_of_scale(session)
        tensors = autoencoder_tensors(session.params["autoencoder"], project)
    else:
        project = describe_project(session.experiment, session.params)
        tensors = checkpoint_tensors(session.params, project)
    contents = project_yaml(project, text.name)  # what the original code cannot express is found before all else
    try:
        _write_text(session, text)
        write_safetensors(file, dict(tensors), dtype=dtype)
        config.write_text(contents)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); choose another place") from error


# --- files -----------------------------------------------------------------------------------------------------------


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []


def _checkpoint_of(path: Path) -> Path:
    if path.is_file():
        return path
    found = _checkpoints(path)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{path} has to hold one checkpoint and holds {names}; give the file itself")
    return found[0]


def _project_file_of(file: Path) -> Path:
    same, others = file.with_suffix(".yaml"), sorted(file.parent.glob("*.yaml"))
    if same.is_file():
        return same
    if len(others) != 1:
        names = ", ".join(path.name for path in others) or "none"
        raise UserError(
            f"{file} needs its project file, and beside it are: {names}; give the right one, --config FILE.yaml"
        )
    return others[0]


def _require_free(path: Path, *files: Path) -> None:
    require_empty(path)
    for file in files:
        if file.exists():
            raise UserError(f"{file} is already there; choose another place")


# --- text encoders ---------------------------------------------------------------------------------------------------


def _text_folder(config: Path) -> Path:
    return config.with_suffix(".text")


def _find_model(config: Path, name: str) -> Mapping[str, Any] | None:
    """The config.json of a CLIP whose folder a project file names, from where it lies."""
    path = config.parent / name / "config.json"
    return read_json(path) if path.is_file() else None


def _tokenizer_beside(config: Path) -> Path | None:
    folder = _text_folder(config)
    return folder if (folder / "tokenizer_config.json").is_file() else None


def _read_text(conditioning: Conditioning, tokenizer: Path | None) -> tuple[Conditioning, PromptEncoder | None]:
    if tokenizer is None:
        return conditioning, None
    conditioning, tokenizers = read_tokenizers(tokenizer, conditioning)
    return conditioning, PromptEncoder(tokenizers, warn=True)


def _write_text(session: Session, folder: Path) -> None:
    conditioning = session.experiment.conditioning
    model = model_to_write(text_stage_of(conditioning)) if isinstance(conditioning, TextConfig) else None
    if model is not None:
        write_json(folder / "config.json", model)
    if session.tokenizers:
        write_tokenizers(session.tokenizers, folder)


# --- first stages ----------------------------------------------------------------------------------------------------


def _read_first_stage(file: Path, autoencoder: OriginalAutoencoder, name: str, weights: Weights) -> Session:
    with open_tensors(file) as tensors:
        params = read_first_stage(tensors, autoencoder, where=str(file), weights=weights)
    return first_stage_session(
        name,
        autoencoder.config,
        image_size=autoencoder.resolution,
        image_channels=autoencoder.image_channels,
        params=params,
        latent=latent_params((0.0,), (1.0,), autoencoder.config.latent_channels),
    )


def _warn_of_scale(session: Session) -> None:
    latent = session.params["latent"]
    mean, std = np.asarray(latent["mean"]), np.asarray(latent["std"])
    if np.any(mean != 0) or np.any(std != 1):
        logger.warning(
            "the file of a first stage says nothing of the spread of its latents, which is left out: mean %s, std %s",
            *(mean.tolist(), std.tolist()),
        )
