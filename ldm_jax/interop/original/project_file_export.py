"""A latent diffusion model as the project file of the original code: what `project_file` reads."""

from typing import Any

import yaml

from ldm_jax.config import (
    ClassConditioning,
    ClipTextConditioning,
    EmbeddingConditioning,
    SdxlConditioning,
    SpatialConditioning,
    TextConditioning,
    Unconditional,
)
from ldm_jax.errors import UserError
from ldm_jax.interop.original.autoencoder import OriginalAutoencoder
from ldm_jax.interop.original.autoencoder_options import options_of_autoencoder
from ldm_jax.interop.original.conditioning import options_of_conditioning
from ldm_jax.interop.original.engine import DENOISER, DISCRETIZATION, SCALINGS, UNET
from ldm_jax.interop.original.project import OriginalProject
from ldm_jax.interop.original.text_options import CONDITIONER, LDM, SGM
from ldm_jax.interop.original.unet_export import options_of_unet

_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "cosine": "cosine", "sqrt": "sqrt"}
_PREDICTIONS = {"epsilon": "eps", "x0": "x0", "v": "v"}
_STAGE_KEYS = {
    ClassConditioning: "class_label",
    SpatialConditioning: "segmentation",
    TextConditioning: "caption",
    ClipTextConditioning: "txt",
}


def project_yaml(project: OriginalProject | OriginalAutoencoder, folder: str | None = None) -> str:
    """The project file of a model or of a first stage alone.

    Args:
        project: the model.
        folder: name of the folder, beside the file, of a CLIP that has no published name (`model_to_write`).

    Raises:
        UserError: the original code cannot express it; what is in the way is named.
    """
    if isinstance(project, OriginalAutoencoder):
        model = options_of_autoencoder(project)
    elif project.library == "sgm":
        model = {"target": "sgm.models.diffusion.DiffusionEngine", "params": _engine(project, folder)}
    else:
        params = _latent_diffusion(project, folder)
        model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
    return yaml.safe_dump({"model": model}, sort_keys=False)


def _latent_diffusion(project: OriginalProject, folder: str | None) -> dict[str, Any]:
    diffusion, config = project.diffusion, project.autoencoder.config
    _require_expressible(project)
    return {
        "linear_start": diffusion.schedule.beta_start,
        "linear_end": diffusion.schedule.beta_end,
        "beta_schedule": _SCHEDULES[diffusion.schedule.kind],
        "timesteps": diffusion.schedule.num_train_timesteps,
        "parameterization": _PREDICTIONS[diffusion.prediction_type],
        "loss_type": diffusion.loss,
        "first_stage_key": "image",
        "cond_stage_key": _STAGE_KEYS.get(type(project.conditioning), "image"),
        "cond_stage_trainable": isinstance(project.conditioning, ClassConditioning | TextConditioning)
        or getattr(project.conditioning, "out_channels", None) is not None,
        "image_size": project.image_size // config.downsample_factor,
        "channels": config.latent_channels,
        "conditioning_key": _conditioning_key(project),
        "scale_factor": project.scale_factor,
        "use_ema": project.use_ema,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": options_of_unet(project.unet),
        },
        "first_stage_config": options_of_autoencoder(project.autoencoder),
        "cond_stage_config": _stage(project, folder),
    }


def _conditioning_key(project: OriginalProject) -> str | None:
    config = project.unet.config
    key = "crossattn" if project.unet.context_dim is not None else ""
    if config.concat_channels:
        key = "hybrid" if key else "concat"
    if config.num_classes is not None or config.vector_dim is not None:
        key = f"{key}-adm" if key else "adm"
    return key or None


def _stage(project: OriginalProject, folder: str | None) -> str | dict[str, Any]:
    conditioning = project.conditioning
    if project.first_stage_conditions:
        return "__is_first_stage__"
    if isinstance(conditioning, Unconditional) and _conditioning_key(project) is None:
        return "__is_unconditional__"
    as_it_comes = SpatialConditioning(in_channels=project.unet.config.concat_channels or 1)
    if isinstance(conditioning, EmbeddingConditioning | Unconditional) or conditioning == as_it_comes:
        return {"target": "torch.nn.Identity"}
    return {"target": "torch.nn.Identity"} if project.has_labels_only else options_of_conditioning(conditioning, folder)


def _engine(project: OriginalProject, folder: str | None) -> dict[str, Any]:
    schedule = project.diffusion.schedule
    _require_expressible(project)
    scaling = next(name for name, prediction in SCALINGS.items() if prediction == project.diffusion.prediction_type)
    steps = {
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "num_timesteps": schedule.num_train_timesteps,
    }
    denoiser = {
        "num_idx": schedule.num_train_timesteps,
        "scaling_config": {"target": scaling},
        "discretization_config": {"target": DISCRETIZATION, "params": steps},
    }
    first_stage = options_of_autoencoder(project.autoencoder)
    return {
        "scale_factor": project.scale_factor,
        "use_ema": project.use_ema,
        "denoiser_config": {"target": DENOISER, "params": denoiser},
        "network_config": {"target": UNET, "params": options_of_unet(project.unet, "sgm")},
        "conditioner_config": _conditioner(project, folder),
        "first_stage_config": first_stage | {"target": "sgm.models.autoencoder." + _class_name(first_stage["target"])},
    }


def _class_name(target: str) -> str:
    return "AutoencoderKL" if target.endswith("KL") else "AutoencoderLegacyVQ"


def _conditioner(project: OriginalProject, folder: str | None) -> dict[str, Any]:
    conditioning = project.conditioning
    if isinstance(conditioning, SdxlConditioning):
        return options_of_conditioning(conditioning, folder)
    embedders = []
    if not isinstance(conditioning, Unconditional):
        embedder = options_of_conditioning(conditioning, folder)
        embedders = [{"input_key": "txt", **embedder, "target": embedder["target"].replace(LDM, SGM)}]
    return {"target": CONDITIONER, "params": {"emb_models": embedders}}


def _require_expressible(project: OriginalProject) -> None:
    diffusion = project.diffusion
    engine = project.library == "sgm"
    checks = {
        "loss": diffusion.loss in ("l1", "l2"),
        "weighting": diffusion.weighting == "uniform",
        "prediction_type": diffusion.prediction_type in SCALINGS.values() or not engine,
    }
    faults = [f"{name}={getattr(diffusion, name)!r}" for name, expressible in checks.items() if not expressible]
    if diffusion.schedule.zero_terminal_snr:
        faults.append("schedule.zero_terminal_snr=True")
    if engine and diffusion.schedule.kind != "scaled_linear":
        faults.append(f"schedule.kind={diffusion.schedule.kind!r}")
    if faults:
        raise UserError(f"the original code ({project.library}) cannot express DiffusionConfig.{', '.join(faults)}")
