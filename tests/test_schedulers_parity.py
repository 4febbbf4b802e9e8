"""Every supported scheduler of diffusers over a grid of options, iterate by iterate, against the real class."""

import importlib
import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.samplers import sample_trajectory
from ldm_jax.errors import UserError
from ldm_jax.interop.cases.samplers import denoise
from ldm_jax.interop.diffusers.schedulers import read_scheduler

pytestmark = pytest.mark.slow

SPACINGS = ("linspace", "leading", "trailing")
SIGMAS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
TYPES = ("epsilon", "v_prediction", "sample")
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X = np.random.default_rng(0).normal(size=(2, 3, 2, 2))
run = jax.jit(sample_trajectory, static_argnums=1)


def grid(**axes: Any) -> list[dict[str, Any]]:
    """Every combination of the values of each option; an option without a name holds dictionaries."""
    found = []
    for values in itertools.product(*axes.values()):
        options: dict[str, Any] = {}
        for name, value in zip(axes, values, strict=True):
            options |= value if name.startswith("_") else {name: value}
        found.append(options)
    return found


SCHEDULES = (STABLE, {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"})
CLIPPINGS = (
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 0.7},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.7},
)
THRESHOLDS = ({}, {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.7})
STEPS = (7, 20)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}

CASES: dict[str, list[dict[str, Any]]] = {
    "DDPMScheduler": [
        *grid(timestep_spacing=SPACINGS, prediction_type=TYPES, _clip=CLIPPINGS, _schedule=SCHEDULES[:1], steps=STEPS),
        *grid(variance_type=("fixed_small", "fixed_small_log", "fixed_large"), steps_offset=(0, 1),
              _schedule=SCHEDULES),
        *grid(beta_schedule=("sigmoid",), timestep_spacing=SPACINGS),
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"request": {"timesteps": [999, 800, 555, 300, 100, 7]}},
    ],
    "DDIMScheduler": [
        *grid(timestep_spacing=SPACINGS, prediction_type=TYPES, _clip=CLIPPINGS, _schedule=SCHEDULES[:2], steps=STEPS),
        *grid(steps_offset=(0, 1), set_alpha_to_one=(False, True), _schedule=SCHEDULES, steps=(1, 30, 1000)),
        *grid(timestep_spacing=SPACINGS, request=({"eta": 0.4}, {"eta": 1.0})),
        *grid(rescale_betas_zero_snr=(True,), prediction_type=("v_prediction", "sample"), timestep_spacing=SPACINGS),
        {"num_train_timesteps": 400, "beta_end": 0.03},
    ],
    "DDIMInverseScheduler": [
        *grid(timestep_spacing=SPACINGS[1:], prediction_type=TYPES[:2], _clip=CLIPPINGS[:2], _schedule=SCHEDULES),
        *grid(set_alpha_to_one=(False,), prediction_type=TYPES, steps=STEPS, steps_offset=(0, 1), clip_sample=(False,)),
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "PNDMScheduler": [
        *grid(
            skip_prk_steps=(True, False), timestep_spacing=SPACINGS, prediction_type=TYPES[:2], _schedule=SCHEDULES,
            steps=STEPS,
        ),
        *grid(skip_prk_steps=(True,), steps=(1, 2, 3), set_alpha_to_one=(True, False), steps_offset=(0, 1)),
        *grid(skip_prk_steps=(False,), steps=(4, 50), set_alpha_to_one=(True, False)),
    ],
    "EulerDiscreteScheduler": [
        *grid(timestep_spacing=SPACINGS, _sigmas=SIGMAS, prediction_type=TYPES, _schedule=SCHEDULES[:1], steps=STEPS),
        *grid(final_sigmas_type=("zero", "sigma_min"), _sigmas=SIGMAS, _schedule=SCHEDULES),
        *grid(sigma_min=(None, 0.1), sigma_max=(None, 8.0), _sigmas=SIGMAS[1:], _schedule=[STABLE]),
        *grid(interpolation_type=("log_linear",), _sigmas=SIGMAS, timestep_spacing=SPACINGS),
        *grid(timestep_type=("continuous",), prediction_type=TYPES, timestep_spacing=SPACINGS[1:]),
        *grid(rescale_betas_zero_snr=(True,), prediction_type=TYPES[1:], timestep_spacing=SPACINGS,
              steps_offset=(0, 1)),
        {"request": {"timesteps": [999, 800, 555, 300, 100, 7]}},
        {"request": {"sigmas": [14.0, 7.0, 3.0, 1.0, 0.2, 0.0]}},
    ],
    "EulerAncestralDiscreteScheduler": [
        *grid(timestep_spacing=SPACINGS, prediction_type=TYPES[:2], _schedule=SCHEDULES, steps=STEPS),
        *grid(rescale_betas_zero_snr=(True,), prediction_type=TYPES[1:2], timestep_spacing=SPACINGS),
    ],
    "HeunDiscreteScheduler": [
        *grid(timestep_spacing=SPACINGS, _sigmas=SIGMAS, prediction_type=TYPES, _schedule=SCHEDULES[:1], steps=STEPS),
        *grid(beta_schedule=("exp", "linear"), _clip=CLIPPINGS[:2], steps_offset=(0, 1), timestep_spacing=SPACINGS[1:]),
        {"steps": 1},
        {"request": {"timesteps": [999, 800, 555, 300, 100, 7]}},
    ],
    "LMSDiscreteScheduler": [
        *grid(timestep_spacing=SPACINGS, _sigmas=SIGMAS, prediction_type=TYPES, _schedule=SCHEDULES[:1], steps=STEPS),
        *grid(request=({"order": 1}, {"order": 2}, {"order": 3}), _schedule=SCHEDULES),
    ],
    "KDPM2DiscreteScheduler": grid(
        timestep_spacing=SPACINGS, _sigmas=SIGMAS, prediction_type=TYPES[:2], _schedule=SCHEDULES[:2], steps=STEPS
    ),
    "KDPM2AncestralDiscreteScheduler": grid(
        timestep_spacing=SPACINGS, _sigmas=SIGMAS, prediction_type=TYPES[:2], _schedule=SCHEDULES[:2], steps=STEPS
    ),
    "DPMSolverMultistepScheduler": [
        *grid(timestep_spacing=SPACINGS, _sigmas=(*SIGMAS, {"use_lu_lambdas": True}), prediction_type=TYPES,
              solver_order=(1, 2, 3), steps=STEPS, _schedule=SCHEDULES[:1]),
        *grid(algorithm_type=("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
              solver_type=("midpoint", "heun"), solver_order=(1, 2, 3), final_sigmas_type=("zero", "sigma_min"),
              lower_order_final=(True, False), steps=(6, 16)),
        *grid(euler_at_final=(True,), final_sigmas_type=("zero", "sigma_min"), solver_order=(2, 3), steps=STEPS),
        *grid(_threshold=THRESHOLDS[1:], algorithm_type=("dpmsolver++", "dpmsolver"), prediction_type=TYPES,
              final_sigmas_type=("sigma_min",)),
        *grid(_schedule=SCHEDULES, _sigmas=(*SIGMAS, {"use_lu_lambdas": True})),
        *grid(lambda_min_clipped=(-5.1, -2.0), timestep_spacing=SPACINGS, beta_schedule=("squaredcos_cap_v2",)),
        *grid(_flow=(FLOW, {**FLOW, "flow_shift": 1.0}, {**FLOW, "prediction_type": "epsilon"}), solver_order=(2, 3)),
        *grid(rescale_betas_zero_snr=(True,), prediction_type=TYPES[1:], timestep_spacing=SPACINGS),
        {"request": {"timesteps": [999, 800, 555, 300, 100, 7]}},
        {**FLOW, "use_dynamic_shifting": True, "request": {"mu": 0.8}},
    ],
    "DPMSolverSinglestepScheduler": [
        *grid(_sigmas=SIGMAS, prediction_type=TYPES, solver_order=(1, 2, 3), steps=(6, 7, 8, 20), _schedule=[STABLE]),
        *grid(algorithm_type=("dpmsolver++", "sde-dpmsolver++", "dpmsolver"), solver_type=("midpoint", "heun"),
              solver_order=(1, 2, 3), final_sigmas_type=("zero", "sigma_min"), lower_order_final=(True, False),
              steps=(6, 7, 17)),
        *grid(_threshold=THRESHOLDS[1:], prediction_type=TYPES, _schedule=SCHEDULES),
        *grid(lambda_min_clipped=(-5.1, -2.0), beta_schedule=("squaredcos_cap_v2",)),
        *grid(_flow=(FLOW, {**FLOW, "flow_shift": 1.0}), solver_order=(2, 3), steps=(6, 9)),
        {"request": {"timesteps": [999, 800, 555, 300, 100, 7]}},
    ],
    "UniPCMultistepScheduler": [
        *grid(timestep_spacing=SPACINGS, _sigmas=SIGMAS, prediction_type=TYPES, solver_order=(1, 2, 3), steps=STEPS,
              _schedule=SCHEDULES[:1]),
        *grid(solver_type=("bh1", "bh2"), predict_x0=(True, False), final_sigmas_type=("sigma_min",),
              solver_order=(2, 3, 4), lower_order_final=(True, False), disable_corrector=([], [0, 1, 2])),
        *grid(final_sigmas_type=("sigma_min",), _sigmas=SIGMAS, _schedule=SCHEDULES),
        *grid(sigma_min=(None, 0.1), sigma_max=(None, 8.0), _sigmas=SIGMAS[1:], _schedule=[STABLE]),
        *grid(_threshold=THRESHOLDS[1:], prediction_type=TYPES),
        *grid(_flow=(FLOW, {**FLOW, "flow_shift": 1.0}, {**FLOW, "use_karras_sigmas": True}), solver_order=(2, 3),
              final_sigmas_type=("zero", "sigma_min"), steps=STEPS),
        *grid(_flow=(FLOW,), shift_terminal=(0.1,)),
        *grid(_flow=(FLOW,), use_dynamic_shifting=(True,), time_shift_type=("exponential", "linear"),
              request=({"mu": 0.8},)),
        *grid(rescale_betas_zero_snr=(True,), prediction_type=TYPES[1:], timestep_spacing=SPACINGS),
    ],
    "DEISMultistepScheduler": [
        *grid(timestep_spacing=SPACINGS, _sigmas=SIGMAS, prediction_type=TYPES, solver_order=(1, 2, 3), steps=STEPS,
              _schedule=SCHEDULES[:1]),
        *grid(lower_order_final=(True, False), solver_order=(2, 3), _schedule=SCHEDULES),
        *grid(_threshold=THRESHOLDS[1:], prediction_type=TYPES),
        *grid(_flow=(FLOW, {**FLOW, "flow_shift": 1.0}), solver_order=(2, 3), steps=STEPS),
    ],
    "EDMEulerScheduler": grid(
        sigma_schedule=("karras", "exponential"), prediction_type=TYPES[:2], final_sigmas_type=("zero", "sigma_min"),
        sigma_data=(0.5, 1.0), sigma_max=(80.0, 20.0), rho=(7.0, 3.0), steps=STEPS,
    ),
    "EDMDPMSolverMultistepScheduler": [
        *grid(sigma_schedule=("karras", "exponential"), prediction_type=TYPES[:2], solver_order=(1, 2, 3), steps=STEPS,
              final_sigmas_type=("zero", "sigma_min")),
        *grid(algorithm_type=("dpmsolver++", "sde-dpmsolver++"), solver_type=("midpoint", "heun"),
              solver_order=(1, 2, 3), euler_at_final=(True, False), lower_order_final=(True, False)),
        *grid(_threshold=THRESHOLDS[1:], sigma_data=(0.5, 1.0)),
    ],
    "FlowMatchEulerDiscreteScheduler": [
        *grid(shift=(1.0, 3.0), _sigmas=SIGMAS, invert_sigmas=(False, True), steps=STEPS),
        *grid(shift_terminal=(0.1,), _sigmas=SIGMAS),
        *grid(use_dynamic_shifting=(True,), time_shift_type=("exponential", "linear"), request=({"mu": 0.8},)),
        *grid(stochastic_sampling=(True,), shift=(1.0, 3.0)),
        *grid(shift=(1.0, 3.0), request=({"sigmas": [1.0, 0.7, 0.4, 0.1]}, {"timesteps": [900.0, 500.0, 50.0]},
                                         {"timesteps": [900.0, 500.0], "sigmas": [0.9, 0.4]})),
    ],
    "FlowMatchHeunDiscreteScheduler": grid(shift=(1.0, 3.0), steps=(1, 7, 20)),
}  # fmt: skip


class _Recorded:
    """A stand-in for torch's normal numbers that keeps what it hands out."""

    def __init__(self) -> None:
        self.numbers = np.random.default_rng(1)
        self.drawn: list[np.ndarray] = []

    def __call__(self, shape: Any, **_: Any) -> Any:
        import torch

        self.drawn.append(self.numbers.normal(size=tuple(shape)))
        return torch.from_numpy(self.drawn[-1])


def make_reference(name: str, options: dict[str, Any], steps: int, request: dict[str, Any]) -> Any:
    """The scheduler of diffusers, with its timesteps set."""
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    given = {key: value for key, value in request.items() if key in ("timesteps", "sigmas", "mu")}
    counted = {} if {"timesteps", "sigmas"} & set(given) else {"num_inference_steps": steps}
    scheduler.set_timesteps(**counted, **given)
    return scheduler


def iterate(scheduler: Any, request: dict[str, Any], monkeypatch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Iterates of diffusers, and the noise drawn at each of them."""
    import torch

    recorded, module = _Recorded(), importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", recorded, raising=False)
    x = torch.from_numpy(X) * getattr(scheduler, "init_noise_sigma", 1.0)
    iterates, noises = [x.numpy()], []
    stepped = {key: value for key, value in request.items() if key in ("eta", "order")}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        prediction = 0.4 * scaled * torch.cos(t.double() / 700.0) + 0.1 * torch.sin(t.double() / 90.0 + scaled)
        before = len(recorded.drawn)
        x = scheduler.step(prediction, t, x, **stepped).prev_sample
        iterates.append(x.double().numpy())
        noises.append(recorded.drawn[-1] if len(recorded.drawn) > before else np.zeros_like(X))
    return np.stack(iterates), np.stack(noises)


def tolerance(name: str, options: dict[str, Any]) -> float:
    """Relative to the largest value; diffusers' own float32 coefficients are worse where signal is nearly lost."""
    if name == "DEISMultistepScheduler":  # its coefficients are differences of nearly equal numbers in float32
        return 5e-3
    return 1e-3 if options.get("beta_schedule") == "squaredcos_cap_v2" else 2e-5


def compare(name: str, case: dict[str, Any], monkeypatch: Any) -> str | None:
    """What is wrong with a case, if anything."""
    options = dict(case)
    steps, request = options.pop("steps", 10), options.pop("request", {})
    try:
        scheduler = make_reference(name, options, steps, request)
    except (ValueError, NotImplementedError) as error:
        return None if is_refused(name, options, steps, request) else f"diffusers refuses it: {error}"
    try:
        theirs, noises = iterate(scheduler, request, monkeypatch)
    except (ValueError, NotImplementedError, IndexError, AssertionError, UnboundLocalError):
        return None  # a combination that diffusers only notices in a step
    if not np.isfinite(theirs).all():
        return None
    try:
        sampler = read_scheduler({"_class_name": name, **options}).make_sampler(steps, **request)
    except UserError as error:
        return f"refused: {error}"
    ours = run(sampler, denoise, jnp.asarray(X), jax.random.key(0), jnp.arange(len(X)), jnp.asarray(noises))
    theirs_t = scheduler.timesteps.double().numpy()
    if sampler.timesteps.shape != theirs_t.shape or np.abs(np.asarray(sampler.timesteps) - theirs_t).max() > 1e-2:
        return f"timesteps {sampler.timesteps} are not {theirs_t}"
    error = np.abs(np.asarray(ours) - theirs).max() / max(1.0, np.abs(theirs).max())
    return None if error < tolerance(name, options) else f"error {error:.1e}"


def is_refused(name: str, options: dict[str, Any], steps: int, request: dict[str, Any]) -> bool:
    """Whether we refuse a case too."""
    try:
        read_scheduler({"_class_name": name, **options}).make_sampler(steps, **request)
    except UserError:
        return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_every_iterate_is_that_of_diffusers(name: str, monkeypatch: Any) -> None:
    pytest.importorskip("diffusers")
    warnings.simplefilter("ignore")
    with jax.enable_x64(True):
        wrong = {str(case): compare(name, case, monkeypatch) for case in CASES[name]}
    wrong = {case: message for case, message in wrong.items() if message}
    assert not wrong, f"{len(wrong)} of {len(CASES[name])}:\n" + "\n".join(f"{c}: {m}" for c, m in wrong.items())
