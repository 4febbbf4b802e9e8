"""The one door to a whole model on disk: a run of this project, or a model of another system, read and written."""

import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers_export import write_pipeline
from ldm_jax.interop.diffusers_pipeline import imported_sampler, is_pipeline, read_pipeline
from ldm_jax.interop.json_files import read_json
from ldm_jax.interop.write_safetensors import FloatType
from ldm_jax.model import Params
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.training.checkpoints import write_atomically
from ldm_jax.training.run_folder import RunFolder

Format = Literal["run", "diffusers", "original"]
Weights = Literal["auto", "ema", "raw"]

_SCHEDULER = "scheduler_config.json"


def is_run(path: Path) -> bool:
    """Whether a folder is a run of this project."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def open_model(
    path: Path, *, config: Path | None = None, variant: str | None = None, weights: Weights = "auto"
) -> Session:
    """The model at `path`, ready to draw and to train on.

    Args:
        path: a run, a pipeline folder of diffusers, or a single file (or its folder) of the original repositories.
        config: the YAML of a single file, where it does not lie beside it.
        variant: of a pipeline's weights, such as "fp16".
        weights: of a single file, its moving averages (ema), the others (raw), or the first where it has them (auto).

    Raises:
        UserError: nothing there is a model that this project knows, or it is damaged; the message says what.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if is_run(path):
        return _open_run(path)
    if is_pipeline(path):
        return read_pipeline(path, variant)
    raise UserError(
        f"{path} is no model known here: neither a run (config.json and checkpoints/), nor a pipeline of diffusers "
        "(model_index.json), nor a checkpoint of the original repositories (.ckpt or .safetensors with its .yaml)"
    )


def save_model(session: Session, path: Path, form: Format, dtype: FloatType | None = None) -> None:
    """Write a model in a format; what is there already is not overwritten.

    Raises:
        UserError: the format cannot hold this model, or the path cannot be written.
    """
    match form:
        case "run":
            _write_run(session, path)
        case "diffusers":
            write_pipeline(session, path, dtype)


def _open_run(path: Path) -> Session:
    session = load_session(path)
    if not (path / _SCHEDULER).is_file():
        return session
    _, sampler = imported_sampler(read_json(path / _SCHEDULER))
    return Session(**{**vars(session), "imported_sampler": sampler})


def _write_run(session: Session, path: Path) -> None:
    """A run folder of which both stages are finished: `sample.py`, `--start` and `--first-stage.run` take it."""
    run, experiment = RunFolder(path), session.experiment
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} is not empty; choose another folder")
    run.open(experiment)
    run.save_tokenizers(session.tokenizers)
    run.write_manifest(experiment, {"class_names": list(session.class_names), "credit": session.credit})
    if session.imported_sampler is not None:
        write_atomically(run.path / _SCHEDULER, json.dumps(dict(session.imported_sampler.options), indent=1) + "\n")
    params: Params = jax.tree.map(jnp.asarray, session.params)
    stages: dict[str, tuple[Any, Params]] = {
        "autoencoder": (experiment.first_stage.training, {"autoencoder": params["autoencoder"]}),
        "diffusion": (experiment.training, params),
    }
    for name, (training, model) in stages.items():
        checkpoints = run.checkpoints(name)
        checkpoints.save(training.num_steps, {"model": model})
        checkpoints.wait()
