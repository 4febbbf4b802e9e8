"""diffusers' schedulers: from a `scheduler_config.json` to a schedule and samplers, and back.

Every option is supported, at a value that changes nothing, or refused by its name. Each class has one line in the table
and one small function, which says in which of our samplers its options end. Iterates are those of diffusers to about
1e-6, with one exception: where noise levels are spaced by `use_exponential_sigmas` or `use_beta_sigmas`, the multistep
solvers cut times to integers, and a first time of 998.9999 or 999 depends on the last bit of PyTorch's square root.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from ldm_jax.config import PredictionType, ScheduleConfig
from ldm_jax.diffusion.samplers.ddim import ddim
from ldm_jax.diffusion.samplers.ddpm import ddpm
from ldm_jax.diffusion.samplers.deis import deis
from ldm_jax.diffusion.samplers.dpm_singlestep import dpm_solver_singlestep
from ldm_jax.diffusion.samplers.dpm_solver import FEW_STEPS, dpm_solver
from ldm_jax.diffusion.samplers.euler import euler, euler_ancestral, flow_renoising
from ldm_jax.diffusion.samplers.grid import Grid
from ldm_jax.diffusion.samplers.heun import heun
from ldm_jax.diffusion.samplers.kdpm2 import kdpm2, kdpm2_ancestral
from ldm_jax.diffusion.samplers.linear import Preconditioned
from ldm_jax.diffusion.samplers.lms import lms
from ldm_jax.diffusion.samplers.pndm import plms, pndm
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.diffusion.samplers.unipc import unipc
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.scheduler_grids import (
    alphas_cumprod,
    checked_timesteps,
    ddim_timesteps,
    schedule_of,
    sigma_grid,
    sigma_grid_at,
)
from ldm_jax.interop.diffusers.scheduler_options import Options, clipping_of, prediction_type_of, read_options, refuse
from ldm_jax.interop.diffusers.solver_grids import edm_grid, flow_grid, solver_grid


class Request(NamedTuple):
    """What a sampling call of diffusers is given besides the configuration."""

    num_sample_steps: int
    timesteps: Sequence[float | int] | None = None
    """Timesteps given one by one, where the scheduler takes them."""
    sigmas: Sequence[float | int] | None = None
    """Noise levels given one by one, where the scheduler takes them."""
    eta: float = 0.0
    """Share of fresh noise (DDIM)."""
    mu: float | None = None
    """Time shift of flow matching that depends on the picture's size (use_dynamic_shifting)."""
    order: int = 4
    """Order of LMS."""
    skip: int = 0
    """Steps left out at the noisy end, as by image-to-image."""


Build: TypeAlias = Callable[[Options, Request], Sampler]


@dataclass(frozen=True)
class Scheduler:
    """A scheduler as it was read."""

    name: str
    """Its class in diffusers."""
    schedule: ScheduleConfig | None
    """The forward process; None for EDM's, which has no timesteps."""
    prediction_type: PredictionType
    """What the denoiser predicts; of an EDM network, the sign of its output as epsilon or v."""
    options: Options
    """Every option, the defaults included."""

    def make_sampler(
        self,
        num_sample_steps: int,
        *,
        timesteps: Sequence[float | int] | None = None,
        sigmas: Sequence[float | int] | None = None,
        eta: float = 0.0,
        mu: float | None = None,
        order: int = 4,
        skip: int = 0,
    ) -> Sampler:
        """The sampler of as many steps, with the timesteps and noise levels that diffusers would choose.

        Args:
            num_sample_steps: diffusers' num_inference_steps; not looked at where timesteps or sigmas are given.
            timesteps: timesteps given one by one, where the scheduler takes them.
            sigmas: noise levels given one by one, where the scheduler takes them.
            eta: share of fresh noise of DDIM.
            mu: time shift of flow matching with use_dynamic_shifting.
            order: order of LMS.
            skip: steps left out at the noisy end, as diffusers' image-to-image does.

        Raises:
            UserError: a choice that the scheduler does not have.
        """
        if num_sample_steps < 1:
            raise UserError(f"num_sample_steps={num_sample_steps} must be at least 1")
        request = Request(num_sample_steps, timesteps, sigmas, eta, mu, order, skip)
        _check_request(self.name, request)
        return SCHEDULERS[self.name].build(self.options, request)


def read_scheduler(config: Mapping[str, Any]) -> Scheduler:
    """Read a diffusers scheduler configuration, as `scheduler_config.json` holds it.

    Raises:
        UserError: an unknown class or option, or a value that is not supported; the message names it.
    """
    name, options = read_options(config)
    family = SCHEDULERS[name]
    prediction_type = family.prediction_type(options)
    return Scheduler(name, family.schedule(options), prediction_type, options)


def _check_request(name: str, request: Request) -> None:
    takers = {
        "timesteps": ("DDPM", "EulerDiscrete", "Heun", "DPMSolver", "FlowMatchEuler"),
        "sigmas": ("EulerDiscrete", "FlowMatchEuler"),
        "mu": ("DPMSolver", "UniPC", "DEIS", "FlowMatchEuler"),
    }
    for what, classes in takers.items():
        if getattr(request, what) is not None and not name.startswith(classes):
            raise UserError(f"{name} takes no {what}; leave them out")
    if request.eta and name != "DDIMScheduler":
        raise UserError(f"{name} takes no eta; leave it out")


# --- DDPM, DDIM, PNDM ------------------------------------------------------------------------------------------------


def _rest(grid: Grid, request: Request) -> Grid:
    """The grid without the steps that are left out."""
    return grid.take(np.arange(request.skip, grid.num_steps))


def _alpha_bar_grid(options: Options, t: np.ndarray, start: np.ndarray, end: np.ndarray, final: float) -> Grid:
    """Steps between timesteps `start` and `end`, called at `t`; a negative timestep has alpha_bar `final`."""
    alpha_bar = alphas_cumprod(schedule_of(options)).astype(np.float64)
    total = len(alpha_bar)

    def levels_at(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = np.where(steps < 0, final, alpha_bar[np.clip(steps, 0, total - 1)])
        return np.sqrt(values), np.sqrt(1.0 - values)

    return Grid(t, *levels_at(start), *levels_at(end), lambda s: np.zeros_like(s))


def _final_alpha_bar(options: Options) -> float:
    if options["set_alpha_to_one"]:
        return 1.0
    return float(alphas_cumprod(schedule_of(options))[0])


def _ddpm(options: Options, request: Request) -> Sampler:
    refuse(options, "variance_type", "fixed_small", "fixed_small_log", "fixed_large")
    if request.timesteps is None:
        t = ddim_timesteps(options, request.num_sample_steps)
    else:
        t = checked_timesteps(options, np.asarray(request.timesteps, np.int64))
    t = t[request.skip :]
    grid = _alpha_bar_grid(options, t, t, np.append(t[1:], -1), 1.0)
    sampler = ddpm(grid, _prediction(options), clipping=clipping_of(options))
    std = np.maximum(np.asarray(sampler.rows.std, np.float64), 1e-10)
    if options["variance_type"] == "fixed_large":
        std = np.sqrt(1.0 - (grid.alpha / grid.alpha_next) ** 2)
    std = np.where(t > 0, std, 0.0)  # also the last step has noise, unless it starts from the first timestep
    return replace(sampler, rows=sampler.rows._replace(std=jnp.asarray(std)))


def _ddim(options: Options, request: Request) -> Sampler:
    t = ddim_timesteps(options, request.num_sample_steps)[request.skip :]
    end = t - options["num_train_timesteps"] // request.num_sample_steps
    grid = _alpha_bar_grid(options, t, t, end, _final_alpha_bar(options))
    kind, clipping = _prediction(options), clipping_of(options)
    return ddim(grid, kind, eta=request.eta, clipping=clipping, epsilon_follows=False)


def _ddim_inverse(options: Options, request: Request) -> Sampler:
    refuse(options, "timestep_spacing", "leading", "trailing")
    if options["prediction_type"] == "sample" and options["set_alpha_to_one"]:
        raise UserError(
            "DDIMInverseScheduler: prediction_type='sample' needs set_alpha_to_one=False: clean data has no noise"
        )
    t = ddim_timesteps(options, request.num_sample_steps)[::-1]
    start = np.minimum(
        t - options["num_train_timesteps"] // request.num_sample_steps, options["num_train_timesteps"] - 1
    )
    grid = _alpha_bar_grid(options, t, start, t, _final_alpha_bar(options))
    return ddim(grid, _prediction(options), clipping=clipping_of(options), epsilon_follows=False)


def _pndm(options: Options, request: Request) -> Sampler:
    total, count = options["num_train_timesteps"], request.num_sample_steps
    t, stride = ddim_timesteps(options, count)[request.skip :], total // count
    count = len(t)
    final, kind = _final_alpha_bar(options), prediction_type_of(options, ("epsilon", "v_prediction"))
    if options["skip_prk_steps"]:
        calls = np.concatenate([t[:1], t[1:2], t[1:]])
        start, end = calls.copy(), calls - stride
        if count > 1:
            start[1], end[1] = calls[1] + stride, calls[1]
        return plms(_alpha_bar_grid(options, calls, start, end, final), kind, combine="prediction")
    if count < 4:
        raise UserError(f"PNDMScheduler: skip_prk_steps=False needs at least 4 steps, not {count}")
    half = stride // 2
    begin = t[:4]
    calls = np.stack([begin[:3], begin[1:] + half, begin[1:] + half, begin[1:]], axis=1).ravel()
    origin = np.repeat(begin[:3], 4)
    end = calls - np.tile([half, 0], 6)
    calls, start, end = (np.concatenate(pair) for pair in ((calls, t[3:]), (origin, t[3:]), (end, t[3:] - stride)))
    checked_timesteps(options, calls)
    return pndm(_alpha_bar_grid(options, calls, start, end, final), kind, combine="prediction")


# --- noise levels: Euler, Heun, LMS, KDPM2 ---------------------------------------------------------------------------


def _started(options: Options, sampler: Sampler, grid: Grid) -> Sampler:
    """The sampler with the initial noise as diffusers scales it: it depends on the spacing's name alone."""
    s = grid.s.max()
    scale = s if options["timestep_spacing"] in ("linspace", "trailing") else np.hypot(s, 1.0)
    return replace(sampler, scale=jnp.asarray(scale))


def _euler(options: Options, request: Request) -> Sampler:
    if request.sigmas is None:
        grid = _rest(sigma_grid(options, request.num_sample_steps, request.timesteps), request)
    else:
        grid = _rest(sigma_grid_at(options, request.sigmas), request)
    return _started(options, euler(grid, _prediction(options)), grid)


def _euler_ancestral(options: Options, request: Request) -> Sampler:
    grid = _rest(sigma_grid(options, request.num_sample_steps, None), request)
    return _started(options, euler_ancestral(grid, _no_sample(options)), grid)


def _heun(options: Options, request: Request) -> Sampler:
    grid = _rest(sigma_grid(options, request.num_sample_steps, request.timesteps), request)
    return _started(options, heun(grid, _prediction(options), clipping=clipping_of(options)), grid)


def _lms(options: Options, request: Request) -> Sampler:
    grid = _rest(sigma_grid(options, request.num_sample_steps, None), request)
    return _started(options, lms(grid, _prediction(options), order=request.order), grid)


def _kdpm2(options: Options, request: Request) -> Sampler:
    grid = _rest(sigma_grid(options, request.num_sample_steps, None, round_times=True), request)
    make = kdpm2_ancestral if options["class"] == "KDPM2AncestralDiscreteScheduler" else kdpm2
    return _started(options, make(grid, _no_sample(options)), grid)


# --- multistep solvers -----------------------------------------------------------------------------------------------


def _dpm(options: Options, request: Request) -> Sampler:
    grid = _solver_grid(options, request, final_zero=options["algorithm_type"].endswith("++"))
    choices = _dpm_choices(options)
    choices |= {"lower_order_final": _order_falls(options, request), "euler_at_final": options["euler_at_final"]}
    return dpm_solver(grid, _solver_prediction(options), **choices)


def _dpm_singlestep(options: Options, request: Request) -> Sampler:
    refuse(options, "algorithm_type", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "deis")
    if options["algorithm_type"] == "dpmsolver":
        refuse(options, "thresholding", False)
    grid = _solver_grid(options, request, final_zero=options["algorithm_type"].endswith("++"))
    return dpm_solver_singlestep(grid, _solver_prediction(options), **_dpm_choices(options))


def _dpm_choices(options: Options) -> dict[str, Any]:
    """Arguments that the solvers share; a type of another solver's stands for the default, as in diffusers."""
    refuse(options, "algorithm_type", "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis")
    refuse(options, "solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")
    refuse(options, "variance_type", None)
    algorithm, solver = options["algorithm_type"], options["solver_type"]
    return {
        "order": options["solver_order"],
        "algorithm": "dpmsolver++" if algorithm == "deis" else algorithm,
        "solver_type": solver if solver in ("midpoint", "heun") else "midpoint",
        "lower_order_final": options["lower_order_final"],
        "clipping": clipping_of(options),
    }


def _order_falls(options: Options, request: Request) -> bool:
    """Whether the order falls towards the end of short runs; in diffusers the steps that are left out count too."""
    return options["lower_order_final"] and (request.skip == 0 or request.num_sample_steps < FEW_STEPS)


def _solver_grid(options: Options, request: Request, *, final_zero: bool = True) -> Grid:
    if not final_zero and options["algorithm_type"] != "deis":
        refuse(options, "final_sigmas_type", "sigma_min")
    return _rest(solver_grid(options, request.num_sample_steps, request.timesteps, request.mu), request)


def _solver_prediction(options: Options) -> PredictionType:
    flow = ("flow_prediction",) if options["use_flow_sigmas"] else ()
    names = ("epsilon", "v_prediction", "sample")
    if options.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver") or not options.get("predict_x0", True):
        return prediction_type_of(options, names)
    return prediction_type_of(options, (*names, *flow))


def _unipc(options: Options, request: Request) -> Sampler:
    refuse(options, "solver_type", "bh2", "bh1", "midpoint", "heun", "logrho")
    if not options["predict_x0"]:
        refuse(options, "thresholding", False)
        refuse(options, "final_sigmas_type", "sigma_min")
    if options["final_sigmas_type"] == "sigma_min" and not options["lower_order_final"]:
        for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas"):
            refuse(options, name, False)
    return unipc(
        _solver_grid(options, request),
        _solver_prediction(options),
        order=options["solver_order"],
        variant="bh1" if options["solver_type"] == "bh1" else "bh2",
        predict_x0=options["predict_x0"],
        lower_order_final=options["lower_order_final"],
        disable_corrector=tuple(options["disable_corrector"]),
        clipping=clipping_of(options),
    )


def _deis(options: Options, request: Request) -> Sampler:
    refuse(options, "algorithm_type", "deis", "dpmsolver", "dpmsolver++")
    refuse(options, "solver_type", "logrho", "midpoint", "heun", "bh1", "bh2")
    return deis(
        _solver_grid(options, request),
        _solver_prediction(options),
        order=options["solver_order"],
        lower_order_final=_order_falls(options, request),
        clipping=clipping_of(options),
    )


# --- EDM and flow matching -------------------------------------------------------------------------------------------


def _edm_prediction(options: Options) -> Preconditioned:
    kind = prediction_type_of(options, ("epsilon", "v_prediction"))
    return Preconditioned(options["sigma_data"], negative=kind == "v")


def _edm_euler(options: Options, request: Request) -> Sampler:
    return euler(_rest(edm_grid(options, request.num_sample_steps), request), _edm_prediction(options))


def _edm_dpm(options: Options, request: Request) -> Sampler:
    refuse(options, "algorithm_type", "dpmsolver++", "sde-dpmsolver++", "deis")
    if options["algorithm_type"] == "sde-dpmsolver++":
        refuse(options, "solver_order", 1, 2)
    falls = _order_falls(options, request)
    choices = _dpm_choices(options) | {"lower_order_final": falls, "euler_at_final": options["euler_at_final"]}
    return dpm_solver(_rest(edm_grid(options, request.num_sample_steps), request), _edm_prediction(options), **choices)


def _flow_euler(options: Options, request: Request) -> Sampler:
    grid = _rest(flow_grid(options, request.num_sample_steps, request.timesteps, request.sigmas, request.mu), request)
    return flow_renoising(grid, "flow") if options["stochastic_sampling"] else euler(grid, "flow")


def _flow_heun(options: Options, request: Request) -> Sampler:
    return heun(_rest(flow_grid(options, request.num_sample_steps, None, None, None), request), "flow")


# --- the table -------------------------------------------------------------------------------------------------------


def _prediction(options: Options) -> PredictionType:
    return prediction_type_of(options)


def _no_sample(options: Options) -> PredictionType:
    return prediction_type_of(options, ("epsilon", "v_prediction"))


def _edm_type(options: Options) -> PredictionType:
    return prediction_type_of(options, ("epsilon", "v_prediction"))


def _flow_schedule(options: Options) -> ScheduleConfig:
    return ScheduleConfig(kind="flow", num_train_timesteps=options["num_train_timesteps"], shift=options["shift"])


def _solver_schedule(options: Options) -> ScheduleConfig:
    if not options["use_flow_sigmas"]:
        return schedule_of(options)
    return ScheduleConfig(kind="flow", num_train_timesteps=options["num_train_timesteps"], shift=options["flow_shift"])


class Family(NamedTuple):
    """How a class is read."""

    build: Build
    schedule: Callable[[Options], ScheduleConfig | None] = schedule_of
    prediction_type: Callable[[Options], PredictionType] = _prediction


SCHEDULERS: dict[str, Family] = {
    "DDPMScheduler": Family(_ddpm),
    "DDIMScheduler": Family(_ddim),
    "DDIMInverseScheduler": Family(_ddim_inverse),
    "PNDMScheduler": Family(_pndm, prediction_type=_no_sample),
    "EulerDiscreteScheduler": Family(_euler),
    "EulerAncestralDiscreteScheduler": Family(_euler_ancestral, prediction_type=_no_sample),
    "HeunDiscreteScheduler": Family(_heun),
    "LMSDiscreteScheduler": Family(_lms),
    "KDPM2DiscreteScheduler": Family(_kdpm2, prediction_type=_no_sample),
    "KDPM2AncestralDiscreteScheduler": Family(_kdpm2, prediction_type=_no_sample),
    "DPMSolverMultistepScheduler": Family(_dpm, _solver_schedule, _solver_prediction),
    "DPMSolverSinglestepScheduler": Family(_dpm_singlestep, _solver_schedule, _solver_prediction),
    "UniPCMultistepScheduler": Family(_unipc, _solver_schedule, _solver_prediction),
    "DEISMultistepScheduler": Family(_deis, _solver_schedule, _solver_prediction),
    "EDMEulerScheduler": Family(_edm_euler, lambda _: None, _edm_type),
    "EDMDPMSolverMultistepScheduler": Family(_edm_dpm, lambda _: None, _edm_type),
    "FlowMatchEulerDiscreteScheduler": Family(_flow_euler, _flow_schedule, lambda _: "flow"),
    "FlowMatchHeunDiscreteScheduler": Family(_flow_heun, _flow_schedule, lambda _: "flow"),
}
"""Every scheduler by its class in diffusers."""
