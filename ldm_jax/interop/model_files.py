"""The one door to a whole model on disk: a run of this project, or a model of another system, read and written."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ldm_jax.conditioning.tokenizer import token_inputs
from ldm_jax.errors import UserError
from ldm_jax.files.folders import require_empty
from ldm_jax.files.json_files import read_json
from ldm_jax.files.places import Place
from ldm_jax.files.whole_files import write_atomically
from ldm_jax.files.write_safetensors import FloatType
from ldm_jax.interop.diffusers.export import write_pipeline
from ldm_jax.interop.diffusers.pipeline import imported_sampler, is_pipeline, read_pipeline
from ldm_jax.interop.first_stages import is_autoencoder, read_autoencoder, write_autoencoder
from ldm_jax.interop.original.checkpoint import Weights
from ldm_jax.interop.original.files import is_original, read_original, write_original
from ldm_jax.model import Params
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.run_folder import RunFolder

Format = Literal["run", "diffusers", "original"]

_SCHEDULER = "scheduler_config.json"
_LATENT = "latent.json"
"""In a run: statistics of the latents of a first stage alone, which has no second stage that would hold them."""


def is_run(path: Place) -> bool:
    """Whether a folder is a run of this project."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def open_model(
    path: Place,
    *,
    config: Path | None = None,
    variant: str | None = None,
    weights: Weights = "auto",
    tokenizer: Path | None = None,
    ema_sigma_rel: float | None = None,
) -> Session:
    """The model at `path`, ready to draw and to train on, or a first stage alone.

    Args:
        path: a run, a pipeline or an autoencoder of diffusers, or a single file (or its folder) of the original
            repositories.
        config: the YAML of a single file, where it does not lie beside it.
        variant: of the weights of diffusers, such as "fp16".
        weights: of a single file, its moving averages (ema), the others (raw), or the first where it has them (auto).
        tokenizer: of a single file, the folder of the tokenizer that its text encoder was trained with.
        ema_sigma_rel: of a run, the relative width of an average that is rebuilt from its snapshots.

    Raises:
        UserError: nothing there is a model that this project knows, or it is damaged; the message says what.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    of_original = {"--config": config, "--weights": weights != "auto", "--tokenizer": tokenizer}
    of_diffusers = {"--variant": variant}
    if is_run(path):
        _refuse_flags(path, "a run", of_original | of_diffusers)
        return _open_run(path, ema_sigma_rel)
    of_runs = {"--ema-sigma-rel": ema_sigma_rel is not None}
    path = Path(path)
    if is_pipeline(path) or is_autoencoder(path):
        _refuse_flags(path, "a model of diffusers", of_original | of_runs)
        return read_pipeline(path, variant) if is_pipeline(path) else read_autoencoder(path, variant)
    if is_original(path) or config is not None:
        _refuse_flags(path, "a checkpoint of the original repositories", of_diffusers | of_runs)
        return read_original(path, config, weights, tokenizer)
    raise UserError(
        f"{path} is no model known here: neither a run (config.json and checkpoints/), nor a pipeline or an "
        "autoencoder of diffusers (model_index.json, config.json), nor a checkpoint of the original repositories "
        "(.ckpt or .safetensors with its .yaml)"
    )


def save_model(session: Session, path: Path, form: Format, dtype: FloatType | None = None) -> None:
    """Write a model in a format; what is there already is not overwritten.

    Raises:
        UserError: the format cannot hold this model, or the path cannot be written.
    """
    if form != "original" and token_inputs(session.experiment.conditioning) and not session.tokenizers:
        raise UserError(
            f"{path}: a model of prompts is written with its tokenizer, and this one came without; give the folder of "
            "the one that it was trained with: --tokenizer FOLDER"
        )
    if form != "run" and session.experiment.diffusion.variance == "learned":
        raise UserError(
            f"{path}: its denoiser learns the variance too, which no other system here is told; write it as a run"
        )
    match form:
        case "run":
            _write_run(session, path)
        case "diffusers" if session.is_first_stage:
            write_autoencoder(session, path, dtype)
        case "diffusers":
            write_pipeline(session, path, dtype)
        case "original":
            write_original(session, path, dtype)


def _refuse_flags(path: Place, kind: str, flags: dict[str, Any]) -> None:
    """Refuse what would be left unused: whoever gives it expects another model."""
    if given := [name for name, value in flags.items() if value]:
        raise UserError(f"{path} is {kind}, for which {given[0]} means nothing; leave it out")


def _open_run(path: Place, ema_sigma_rel: float | None) -> Session:
    if (path / _LATENT).is_file() and not RunFolder(path).checkpoints("diffusion").steps():
        session = load_session(path, "autoencoder")
        latent = {name: np.asarray(values, np.float32) for name, values in read_json(path / _LATENT).items()}
        return dataclasses.replace(session, params=session.params | {"latent": latent}, seal=None)
    session = load_session(path, ema_sigma_rel=ema_sigma_rel)
    if not (path / _SCHEDULER).is_file():
        return session
    _, sampler = imported_sampler(read_json(path / _SCHEDULER))
    return dataclasses.replace(session, imported_sampler=sampler)


def _write_run(session: Session, path: Path) -> None:
    """A run folder whose stages are finished: `sample.py`, `--start` and `--first-stage.run` take it."""
    run, experiment, params = RunFolder(path), session.experiment, session.params
    require_empty(path)
    run.open(experiment)
    run.save_tokenizers(session.tokenizers)
    data = {"class_names": list(session.class_names), "credit": session.credit}
    run.write_manifest(experiment, data, "model")
    if session.imported_sampler is not None:
        write_atomically(run.path / _SCHEDULER, json.dumps(dict(session.imported_sampler.options), indent=1) + "\n")
    _save(run, "autoencoder", experiment.first_stage.training.num_steps, {"autoencoder": params["autoencoder"]})
    if session.is_first_stage:
        latent = {name: np.asarray(values).tolist() for name, values in params["latent"].items()}
        write_atomically(run.path / _LATENT, json.dumps(latent) + "\n")
    else:
        _save(run, "diffusion", experiment.training.num_steps, params)


def _save(run: RunFolder, stage: str, step: int, model: Params) -> None:
    checkpoints = run.checkpoints(stage)
    checkpoints.save(step, {"model": model})
    checkpoints.wait()
