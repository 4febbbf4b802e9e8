"""`ldm benchmark --baseline RUN`: the second stage of a run trained by PyTorch and diffusers, and made a run again.

The same first stage, latents, U-Net, schedule, optimizer, batch and steps; the weights that come back stand in a run
folder, so `ldm sample`, `ldm evaluate` and `ldm report` treat both alike, with the same sampler.
"""

import dataclasses
import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax.benchmark.circumstances import usable_cores
from ldm_jax.config import ClassConditioning, Experiment, MeshConfig, Unconditional
from ldm_jax.data.latent_shards import Share
from ldm_jax.data.latent_source import open_latents
from ldm_jax.data.sources import load_source
from ldm_jax.errors import UserError
from ldm_jax.files.folders import require_empty
from ldm_jax.files.weight_files import open_tensors
from ldm_jax.interop.diffusers.unet import abstract_unet_params, unet_slot, write_unet_config
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet
from ldm_jax.interop.mapping import read_params
from ldm_jax.interop.model_files import save_model
from ldm_jax.model import Params
from ldm_jax.sampling.session import Session, load_session
from ldm_jax.sharding import make_mesh
from ldm_jax.training.latent_factory import make_factory

logger = logging.getLogger(__name__)

_CLASSES = "classes"
_ENCODED_AT_ONCE = 64


def train_baseline(run: Path, out: Path, seed: int) -> dict[str, Any]:
    """Train the baseline of a finished run into a new run `out`; returns what PyTorch's side told, with its seconds.

    Raises:
        UserError: PyTorch is missing, the run has what the baseline does not know, or its training failed.
    """
    session = load_session(run)
    require_comparable(session.experiment)
    require_empty(out)
    if missing := [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]:
        raise UserError(f"the baseline needs {', '.join(missing)}: pip install -e '.[parity]'")
    work = out.with_name(f"{out.name}_work")
    work.mkdir(parents=True, exist_ok=True)
    unet = _unet(session)
    task = write_task(session, unet, work, seed)
    program = Path(__file__).with_name("torch_trainer.py")
    if subprocess.run([sys.executable, str(program), str(task)], check=False).returncode != 0:
        raise UserError(f"the training of PyTorch failed; what it said stands above, and its task is {task}")
    told = json.loads((work / "told.json").read_text())
    params = read_baseline(work / "weights.safetensors", unet, session.params)
    experiment = dataclasses.replace(session.experiment, name=f"{session.experiment.name}-torch", seed=seed)
    save_model(dataclasses.replace(session, experiment=experiment, params=params), out, "run")
    (out / "torch.json").write_text(json.dumps(told, indent=1) + "\n")
    logger.info("the baseline is the run %s; %.3f s a step", out, told["seconds_per_step"])
    return told


def require_comparable(experiment: Experiment) -> None:
    """Refuse what the PyTorch side does not do, rather than train something else.

    Raises:
        UserError: naming the field and its value.
    """
    diffusion, first = experiment.diffusion, experiment.first_stage.autoencoder
    conditioning = type(experiment.conditioning).__name__
    is_kl = type(first).__name__ == "AutoencoderKLConfig"
    problems = {
        f"conditioning={conditioning}": not isinstance(experiment.conditioning, ClassConditioning | Unconditional),
        f"diffusion.loss={diffusion.loss}": diffusion.loss != "l2",
        f"diffusion.weighting={diffusion.weighting}": diffusion.weighting != "uniform",
        f"diffusion.prediction_type={diffusion.prediction_type}": diffusion.prediction_type == "flow",
        f"denoiser.num_classes={experiment.denoiser.num_classes}": experiment.denoiser.num_classes is not None,
        f"first_stage.autoencoder={type(first).__name__}": not is_kl,
        f"compute_dtype={experiment.compute_dtype}": experiment.compute_dtype != "float32",
    }
    if found := [what for what, is_one in problems.items() if is_one]:
        raise UserError(
            f"the baseline knows no {', '.join(found)}; it trains U-Nets of classes or of nothing on KL latents, with "
            "L2 and uniform weights in float32"
        )


def write_task(session: Session, unet: DiffusersUNet, folder: Path, seed: int) -> Path:
    """Everything that the other side needs, in a folder; returns the task's file."""
    experiment, model = session.experiment, session.model
    conditioning, training = experiment.conditioning, experiment.training
    source = load_source(experiment.data, "train")
    mesh, encoded = make_mesh(MeshConfig(data=1), jax.devices()[:1]), folder / "latents"
    size = min(_ENCODED_AT_ONCE, len(source))
    make_factory(experiment, mesh, session.params, batch_size=size).write(source, encoded, Share())
    latents = open_latents(encoded)
    moments = np.stack([latents[index]["moments"] for index in range(len(latents))])
    has_classes = isinstance(conditioning, ClassConditioning)
    arrays = {
        "moments": moments.transpose(0, 1, 4, 2, 3),
        "labels": np.array([source.annotation(i)["label"] for i in range(len(source))], np.int64),
        **{name: np.asarray(model.schedule._asdict()[name], np.float32) for name in ("alpha", "sigma")},
        **{
            name: np.broadcast_to(np.asarray(v), moments.shape[-1] // 2) for name, v in session.params["latent"].items()
        },
    }
    np.savez(folder / "arrays.npz", **arrays)
    task = {
        "unet": write_unet_config(unet),
        "classes": {"entries": conditioning.num_entries, "width": conditioning.context_dim} if has_classes else None,
        "prediction_type": experiment.diffusion.prediction_type,
        "cond_drop_prob": experiment.diffusion.cond_drop_prob,
        "training": dataclasses.asdict(training),
        "optimizer": dataclasses.asdict(experiment.optimizer),
        "seed": seed,
        "threads": usable_cores(),
        **{name: str(folder / file) for name, file in _FILES.items()},
    }
    (folder / "task.json").write_text(json.dumps(task, indent=1) + "\n")
    return folder / "task.json"


_FILES = {"arrays": "arrays.npz", "weights": "weights.safetensors", "told": "told.json"}


def read_baseline(file: Path, unet: DiffusersUNet, params: Params) -> Params:
    """Our parameters with the denoiser and the table of classes of the other side.

    Raises:
        UserError: the file does not hold exactly them.
    """
    with open_tensors(file) as tensors:
        denoiser = read_params(
            tensors, unet_slot(unet), abstract_unet_params(unet), where=str(file), ignore=lambda name: name == _CLASSES
        )
        found = {**params, "denoiser": denoiser}
        if _CLASSES in tensors.names():
            found["conditioner"] = {"embedding": {"embedding": tensors.read(_CLASSES)}}
    return found


def _unet(session: Session) -> DiffusersUNet:
    experiment, conditioning = session.experiment, session.experiment.conditioning
    channels = experiment.first_stage.autoencoder.latent_channels
    return DiffusersUNet(
        config=experiment.denoiser,
        in_channels=channels,
        out_channels=channels,
        sample_size=session.model.latent_shape[0],
        context_dim=conditioning.context_dim if isinstance(conditioning, ClassConditioning) else None,
    )
