"""The options of diffusers' schedulers: names, defaults, and a strict reading of a `scheduler_config.json`.

An option of another scheduler's does nothing in diffusers and is let through, because configurations are handed from
one scheduler to the next; a name that no scheduler has is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import refusal

Options: TypeAlias = dict[str, Any]

_BETAS: Options = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_STABLE_BETAS: Options = {**_BETAS, "beta_start": 0.00085, "beta_end": 0.012}
_LEADING: Options = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE: Options = {"timestep_spacing": "linspace", "steps_offset": 0}
_CLIPPING: Options = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLDING: Options = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_ZERO_SNR: Options = {"rescale_betas_zero_snr": False}
_SIGMAS: Options = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW_SIGMAS: Options = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_DPM: Options = {
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
}
_EDM: Options = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_SIGMA_FAMILY: Options = {**_BETAS, **_SIGMAS, **_LINSPACE}
_STABLE_SIGMA_FAMILY: Options = {**_STABLE_BETAS, **_SIGMAS, **_LINSPACE}

DEFAULTS: dict[str, Options] = {
    "DDPMScheduler": {
        **_BETAS, **_CLIPPING, **_THRESHOLDING, **_LEADING, **_ZERO_SNR, "variance_type": "fixed_small",
    },
    "DDIMScheduler": {**_BETAS, **_CLIPPING, **_THRESHOLDING, **_LEADING, **_ZERO_SNR, "set_alpha_to_one": True},
    "DDIMInverseScheduler": {**_BETAS, **_CLIPPING, **_LEADING, **_ZERO_SNR, "set_alpha_to_one": True},
    "PNDMScheduler": {**_BETAS, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": {
        **_SIGMA_FAMILY, **_ZERO_SNR, "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
        "timestep_type": "discrete", "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, **_LINSPACE, **_ZERO_SNR},
    "HeunDiscreteScheduler": {**_STABLE_SIGMA_FAMILY, "clip_sample": False, "clip_sample_range": 1.0},
    "LMSDiscreteScheduler": _SIGMA_FAMILY,
    "KDPM2DiscreteScheduler": _STABLE_SIGMA_FAMILY,
    "KDPM2AncestralDiscreteScheduler": _STABLE_SIGMA_FAMILY,
    "DPMSolverMultistepScheduler": {
        **_SIGMA_FAMILY, **_THRESHOLDING, **_FLOW_SIGMAS, **_DPM, **_ZERO_SNR, "lower_order_final": True,
        "euler_at_final": False, "use_lu_lambdas": False,
    },
    "DPMSolverSinglestepScheduler": {
        **_BETAS, **_SIGMAS, **_THRESHOLDING, **_FLOW_SIGMAS, **_DPM, "lower_order_final": False,
    },
    "UniPCMultistepScheduler": {
        **_SIGMA_FAMILY, **_THRESHOLDING, **_FLOW_SIGMAS, **_ZERO_SNR, "solver_order": 2, "predict_x0": True,
        "solver_type": "bh2", "lower_order_final": True, "disable_corrector": [], "solver_p": None,
        "final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
    "DEISMultistepScheduler": {
        **_SIGMA_FAMILY, **_THRESHOLDING, **_FLOW_SIGMAS, "solver_order": 2, "algorithm_type": "deis",
        "solver_type": "logrho", "lower_order_final": True,
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **_EDM, **_THRESHOLDING, "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False,
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_SIGMAS, "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5,
        "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False,
        "shift_terminal": None, "time_shift_type": "exponential", "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}  # fmt: skip
"""Options of every known scheduler with diffusers' defaults (diffusers 0.42)."""

KNOWN_OPTIONS = frozenset(name for defaults in DEFAULTS.values() for name in defaults)

_PREDICTION_TYPES: dict[str, PredictionType] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
}


def read_options(config: Mapping[str, Any]) -> tuple[str, Options]:
    """The scheduler's class and all of its options, those that the configuration leaves out at their defaults.

    Raises:
        UserError: the class or an option is unknown.
    """
    name = config.get("_class_name")
    if name not in DEFAULTS:
        raise UserError(f"unknown scheduler {name!r}; known: {', '.join(sorted(DEFAULTS))}")
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(given) - KNOWN_OPTIONS)
    if unknown:
        raise UserError(f"{name} has no option {unknown[0]!r}; its options: {', '.join(sorted(DEFAULTS[name]))}")
    options = DEFAULTS[name] | {key: value for key, value in given.items() if key in DEFAULTS[name]}
    options["class"] = name
    refuse(options, "trained_betas", None)
    refuse(options, "solver_p", None)
    return name, options


def refuse(options: Options, name: str, *supported: Any) -> None:
    """Let an option have the supported values alone.

    Raises:
        UserError: it has another one.
    """
    value = options.get(name, supported[0])
    if value not in supported:
        allowed = " or ".join(repr(v) for v in supported)
        raise refusal(options["class"], name, value, f"use {allowed}")


def prediction_type_of(
    options: Options, supported: Sequence[str] = ("epsilon", "v_prediction", "sample")
) -> PredictionType:
    """Our name of the configuration's prediction type.

    Raises:
        UserError: the scheduler does not have it.
    """
    refuse(options, "prediction_type", *supported)
    return _PREDICTION_TYPES[options["prediction_type"]]


def clipping_of(options: Options) -> Clipping:
    """Bounds of x0; thresholding goes before clipping."""
    if options.get("thresholding", False):
        return Clipping("dynamic", options["sample_max_value"], options["dynamic_thresholding_ratio"])
    if options.get("clip_sample", False):
        return Clipping("static", options["clip_sample_range"])
    return NO_CLIPPING
