"""The way out: a `scheduler_config.json` for diffusers that samples as a configuration of ours does.

diffusers spaces timesteps by the integer part of T / n where we take the next timestep of the list, so that iterates
agree where n divides T; and its solvers of the DPM family have a `leading` and `linspace` of their own.
"""

from typing import Any

from ldm_jax.config import DiffusionConfig, SamplingConfig, ScheduleConfig
from ldm_jax.errors import UserError

_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}
_NO_CLIPPING = {"clip_sample": False, "thresholding": False}
_SIGMA_FAMILY = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": True, **_NO_CLIPPING}),
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small", **_NO_CLIPPING}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
    "unipc_1": ("UniPCMultistepScheduler", {"solver_order": 1, "solver_type": "bh2"}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}),
}
"""Scheduler of diffusers and its options for each of our samplers that has one."""

_FLOW_CLASSES = {"euler": "FlowMatchEulerDiscreteScheduler", "ddim": "FlowMatchEulerDiscreteScheduler",
                 "heun": "FlowMatchHeunDiscreteScheduler"}  # fmt: skip


def write_scheduler(diffusion: DiffusionConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """The configuration as diffusers' `scheduler_config.json` holds it.

    Raises:
        UserError: diffusers has no such sampler, schedule, spacing or clipping.
    """
    _refuse_clipping(sampling)
    if diffusion.schedule.kind == "flow":
        return _write_flow(diffusion, sampling)
    if sampling.sampler not in CLASSES:
        raise UserError(
            f"sampling.sampler={sampling.sampler} cannot be written for diffusers; use one of {', '.join(CLASSES)}"
        )
    name, options = CLASSES[sampling.sampler]
    config = {"_class_name": name, **_write_schedule(diffusion.schedule, name), **options}
    config["prediction_type"] = _PREDICTION_TYPES[diffusion.prediction_type]
    config["timestep_spacing"] = sampling.spacing
    solver = name.startswith(("DPMSolver", "UniPC"))
    if solver and sampling.spacing != "trailing":
        raise UserError(
            f"sampling.spacing={sampling.spacing} is another in diffusers' {name}; write sampling.spacing=trailing"
        )
    return config | _write_sigmas(sampling, name)


def _refuse_clipping(sampling: SamplingConfig) -> None:
    if sampling.clipping != "none":
        raise UserError(
            f"sampling.clipping={sampling.clipping} is another in diffusers, whose epsilon does not follow the clipped "
            "x0; write sampling.clipping=none"
        )


def _write_schedule(schedule: ScheduleConfig, name: str) -> dict[str, Any]:
    if schedule.kind not in _BETA_SCHEDULES:
        kinds = ", ".join(_BETA_SCHEDULES)
        raise UserError(f"schedule.kind={schedule.kind} cannot be written for diffusers' {name}; use one of {kinds}")
    config = {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": _BETA_SCHEDULES[schedule.kind],
    }
    if not schedule.zero_terminal_snr:
        return config
    if name in ("PNDMScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"):
        raise UserError(f"schedule.zero_terminal_snr=True cannot be written for diffusers' {name}; use ddim or euler")
    return config | {"rescale_betas_zero_snr": True}


def _write_sigmas(sampling: SamplingConfig, name: str) -> dict[str, Any]:
    if sampling.sigmas == "schedule":
        return {}
    if name not in _SIGMA_FAMILY:
        raise UserError(
            f"sampling.sigmas={sampling.sigmas} cannot be written for diffusers' {name}, which has none or spaces them "
            "between other ends; use sampling.sigmas=schedule, or the samplers euler, heun or lms"
        )
    return {f"use_{sampling.sigmas}_sigmas": True}


def _write_flow(diffusion: DiffusionConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """Flow matching; diffusers spaces its noise levels evenly from 1 to 1 / T, and its times are T sigma."""
    if sampling.sampler not in _FLOW_CLASSES or diffusion.prediction_type != "flow" or sampling.sigmas != "schedule":
        raise UserError(
            f"sampling.sampler={sampling.sampler} with prediction_type={diffusion.prediction_type} and sampling.sigmas="
            f"{sampling.sigmas} cannot be written for diffusers on schedule.kind=flow; use euler, flow and schedule"
        )
    schedule = diffusion.schedule
    return {
        "_class_name": _FLOW_CLASSES[sampling.sampler],
        "num_train_timesteps": schedule.num_train_timesteps,
        "shift": schedule.shift,
    }
