"""Timesteps and noise levels of diffusers' multistep solvers (DPM-Solver, UniPC, DEIS), EDM and flow matching."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Num

from ldm_jax.diffusion.samplers.grid import Grid, Host, PathKind, chain
from ldm_jax.diffusion.samplers.sigmas import spaced_sigmas
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.scheduler_grids import (
    Levels,
    ended_levels,
    refuse_respaced,
    respaced_levels,
    schedule_of,
    spaced_timesteps,
    spacing_of,
)
from ldm_jax.interop.diffusers.scheduler_options import Options, refuse

_JUST_BELOW_ONE = 1e-6


def solver_grid(options: Options, count: int, timesteps: Sequence[float | int] | None, mu: float | None) -> Grid:
    """The grid of the multistep solvers: noise levels spaced over the whole schedule, integer timesteps.

    Raises:
        UserError: options that do not go together.
    """
    config = schedule_of(options)
    levels, spacing = Levels(config), spacing_of(options)
    if options["use_flow_sigmas"]:
        return _flow_solver_grid(options, levels, count, mu)
    _refuse_flow_options(options, mu)
    if timesteps is not None:
        refuse_respaced(options, "timesteps")
        t = np.asarray(timesteps).astype(np.int64)
    else:
        t = _solver_timesteps(options, levels, count)
    if options.get("use_lu_lambdas"):
        s = np.exp(np.linspace(float(levels.log_s[-1]), float(levels.log_s[0]), count))
    elif spacing != "schedule":
        s = respaced_levels(options, spacing, levels.s[::-1], count)
    else:
        return chain(t, _end(options, levels, levels.at(t)), "preserving", levels.time_of)
    t = _rounded(options, levels.time_of(s))
    return chain(t, _end(options, levels, s), "preserving", levels.time_of)


def _solver_timesteps(options: Options, levels: Levels, count: int) -> Num[np.ndarray, " n"]:
    total = options["num_train_timesteps"]
    log_snr = -levels.log_s
    clipped = int(np.searchsorted(log_snr[::-1], options.get("lambda_min_clipped", -math.inf)))
    if "timestep_spacing" not in options:  # the singlestep solver has no choice
        return np.linspace(0, total - 1 - clipped, count + 1).round()[::-1][:-1].astype(np.int64)
    return spaced_timesteps(options, total, total - clipped, count, count + 1).round().astype(np.int64)


def _rounded(options: Options, t: Host) -> Num[np.ndarray, " n"]:
    """Times as the solvers keep them: rounded for Karras and Lu's levels, else cut to integers."""
    nearest = options.get("use_karras_sigmas") or options.get("use_lu_lambdas")
    if options["class"] == "DPMSolverMultistepScheduler" and options["beta_schedule"] == "squaredcos_cap_v2":
        nearest = False
    return (t.round() if nearest else t).astype(np.int64)


def _end(options: Options, levels: Levels, s: Host) -> Float64[np.ndarray, " n_plus_1"]:
    """Noise levels with the last one; DEIS always ends at the smallest, UniPC at the smallest of respaced ones."""
    respaced = spacing_of(options) != "schedule" or options["use_flow_sigmas"]
    if options["class"] == "DEISMultistepScheduler":
        return np.append(s, s[-1] if respaced else levels.s[0]).astype(np.float32).astype(np.float64)
    own_end = respaced and options["class"] == "UniPCMultistepScheduler"
    return ended_levels(options, s, levels, float(s[-1]) if own_end else None)


def _refuse_flow_options(options: Options, mu: float | None) -> None:
    refuse(options, "use_dynamic_shifting", False)
    refuse(options, "shift_terminal", None)
    if options["prediction_type"] == "flow_prediction":
        raise UserError(f"{options['class']}: prediction_type='flow_prediction' needs use_flow_sigmas=True")
    if mu is not None:
        raise UserError(f"{options['class']}: mu={mu} is for use_dynamic_shifting=True")


def _flow_solver_grid(options: Options, levels: Levels, count: int, mu: float | None) -> Grid:
    total = options["num_train_timesteps"]
    unipc = options["class"] == "UniPCMultistepScheduler"
    for name in ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        refuse(options, name, False)
    if not unipc:
        refuse(options, "use_karras_sigmas", False)
    if options.get("use_karras_sigmas"):
        s = respaced_levels(options, "karras", levels.s[::-1], count)
        sigma = s / (s + 1.0)
    elif unipc:
        sigma = shifted(options, np.linspace(1.0, 1.0 / total, count + 1)[:-1], options["flow_shift"], mu)
        sigma[0] -= _JUST_BELOW_ONE if abs(sigma[0] - 1.0) < _JUST_BELOW_ONE else 0.0
    else:
        even = 1.0 - np.linspace(1.0, 1.0 / total, count + 1)
        shift = math.exp(mu) if mu is not None else options["flow_shift"]
        sigma = (shift * even / (1.0 + (shift - 1.0) * even))[::-1][:-1]
    t = (sigma * total).astype(np.int64)
    return chain(t, _end(options, levels, sigma), "flow", lambda s: s * total)


def shifted(options: Options, sigma: Host, shift: float, mu: float | None) -> Host:
    """Noise levels of the straight path, shifted by a constant or by mu, and stretched to a last one.

    Raises:
        UserError: mu without use_dynamic_shifting, or the other way round.
    """
    if options["use_dynamic_shifting"] != (mu is not None):
        raise UserError(f"{options['class']}: use_dynamic_shifting=True and mu go together; mu={mu}")
    if mu is None:
        sigma = shift * sigma / (1.0 + (shift - 1.0) * sigma)
    else:
        refuse(options, "time_shift_type", "exponential", "linear")
        weight = math.exp(mu) if options["time_shift_type"] == "exponential" else mu
        sigma = weight / (weight + (1.0 / sigma - 1.0))
    if options["shift_terminal"]:
        rest = 1.0 - sigma
        sigma = 1.0 - rest * (1.0 - options["shift_terminal"]) / rest[-1]
    return sigma


def flow_grid(
    options: Options,
    count: int,
    timesteps: Sequence[float | int] | None,
    sigmas: Sequence[float | int] | None,
    mu: float | None,
) -> Grid:
    """The grid of the flow-matching schedulers: times are T sigma, and the shift is applied once more to sigma's range.

    Raises:
        UserError: timesteps and sigmas of different number, or mu without dynamic shifting.
    """
    total, shift = options["num_train_timesteps"], options["shift"]
    options = {"use_dynamic_shifting": False, "shift_terminal": None, "invert_sigmas": False, **options}
    if timesteps is not None and sigmas is not None and len(timesteps) != len(sigmas):
        raise UserError(f"{options['class']}: {len(timesteps)} timesteps for {len(sigmas)} sigmas; give as many")
    if sigmas is not None:
        sigma = np.asarray(sigmas, np.float32).astype(np.float64)
    elif timesteps is not None:
        sigma = np.asarray(timesteps, np.float32).astype(np.float64) / total
    else:
        sigma = np.linspace(*_flow_ends(options), count) / total
    sigma = shifted(options, sigma, shift, mu)
    spacing = spacing_of(options)
    if spacing != "schedule":
        sigma = spaced_sigmas(spacing, sigma[0], sigma[-1], len(sigma))
    sigma = sigma.astype(np.float32)
    t = np.float32(total) * sigma if timesteps is None else np.asarray(timesteps, np.float32)
    end = 0.0
    if options["invert_sigmas"]:
        sigma, end = np.float32(1.0) - sigma, 1.0
        t = np.float32(total) * sigma
    return chain(t, np.append(sigma, end).astype(np.float64), "flow", lambda s: s * total)


def _flow_ends(options: Options) -> tuple[float, float]:
    """Largest and smallest time of the training levels, in float32 as they are kept."""
    total, shift = options["num_train_timesteps"], np.float32(options["shift"])
    sigma = np.array([total, 1], np.float32) / np.float32(total)
    if not options["use_dynamic_shifting"]:
        sigma = shift * sigma / (np.float32(1.0) + (shift - np.float32(1.0)) * sigma)
    return float(sigma[0]) * total, float(sigma[1]) * total


def edm_grid(options: Options, count: int) -> Grid:
    """The grid of the EDM schedulers: alpha = 1, times ln(s) / 4.

    Raises:
        UserError: an unknown schedule of noise levels.
    """
    refuse(options, "sigma_schedule", "karras", "exponential")
    low, high = options["sigma_min"], options["sigma_max"]
    s = spaced_sigmas(options["sigma_schedule"], high, low, count, options["rho"]).astype(np.float32)
    refuse(options, "final_sigmas_type", "zero", "sigma_min")
    end = 0.0 if options["final_sigmas_type"] == "zero" else float(s[-1])
    levels = np.append(s, np.float32(end)).astype(np.float64)
    kind: PathKind = "edm"
    return chain(0.25 * np.log(s), levels, kind, lambda s: 0.25 * np.log(s))
