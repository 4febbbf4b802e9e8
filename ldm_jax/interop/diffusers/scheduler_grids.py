"""Timesteps and noise levels in the way of diffusers' schedulers, each family with its own rules.

The schedule is computed as diffusers does it, in float32 with a cumulative product in float64, because rounding it
otherwise moves the last digits of every iterate; what a sampler makes of it is in float64 as everywhere.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Num

from ldm_jax.config import ScheduleConfig, SigmaSpacing
from ldm_jax.diffusion.samplers.grid import Grid, Host, chain
from ldm_jax.diffusion.samplers.sigmas import spaced_sigmas
from ldm_jax.errors import UserError
from ldm_jax.interop.diffusers.scheduler_options import Options, refuse

_KINDS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
    "exp": "exponential",
}
_OWN_BETA_SCHEDULES = {"DDPMScheduler": ("sigmoid",), "HeunDiscreteScheduler": ("exp",)}
_SMALLEST_ALPHA_BAR = np.float32(2.0**-24)


def schedule_of(options: Options) -> ScheduleConfig:
    """The forward process of a scheduler with betas.

    Raises:
        UserError: it is none of ours.
    """
    own = _OWN_BETA_SCHEDULES.get(options["class"], ())
    refuse(options, "beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2", *own)
    return ScheduleConfig(
        kind=_KINDS[options["beta_schedule"]],  # type: ignore[arg-type]
        num_train_timesteps=options["num_train_timesteps"],
        beta_start=options["beta_start"],
        beta_end=options["beta_end"],
        zero_terminal_snr=options.get("rescale_betas_zero_snr", False),
    )


def alphas_cumprod(config: ScheduleConfig) -> Float32[np.ndarray, " T"]:
    """alpha_bar with diffusers' rounding."""
    beta = _betas(config)
    if config.zero_terminal_snr:
        beta = _rescaled(beta)
    return _cumprod(np.float32(1.0) - beta)


def _cumprod(alpha: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    return np.cumprod(alpha.astype(np.float64)).astype(np.float32)


def _betas(config: ScheduleConfig) -> Float32[np.ndarray, " T"]:
    first, last, count = config.beta_start, config.beta_end, config.num_train_timesteps
    match config.kind:
        case "linear":
            return _linspace(first, last, count)
        case "scaled_linear":
            return np.square(_linspace(first**0.5, last**0.5, count))
        case "sigmoid":
            rising = np.float32(1.0) / (np.float32(1.0) + np.exp(-_linspace(-6.0, 6.0, count)))
            return rising * np.float32(last - first) + np.float32(first)
        case "cosine":
            alpha_bar = np.square(np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2))
        case _:
            alpha_bar = np.exp(-12.0 * np.arange(count + 1) / count)
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)


def _linspace(first: float, last: float, count: int) -> Float32[np.ndarray, " T"]:
    """Even steps in float32 from both ends towards the middle, as PyTorch counts them."""
    begin, end, index = np.float32(first), np.float32(last), np.arange(count)
    step = np.float64((end - begin) / np.float32(max(count - 1, 1)))
    rising, falling = begin + step * index, end - step * (count - 1 - index)  # rounded once, as by fused operations
    return np.where(index < count // 2, rising, falling).astype(np.float32)


def _rescaled(beta: Float32[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    root = np.sqrt(_cumprod(np.float32(1.0) - beta))
    first, last = root[0], root[-1]
    alpha_bar = np.square((root - last) * (first / (first - last)))
    return np.float32(1.0) - np.append(alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1])


class Levels:
    """Noise levels s = sigma / alpha of all training timesteps, and the times of others."""

    def __init__(self, config: ScheduleConfig) -> None:
        """Compute them; a last timestep without signal gets a trace of it."""
        alpha_bar = alphas_cumprod(config)
        if config.zero_terminal_snr:
            alpha_bar[-1] = _SMALLEST_ALPHA_BAR
        self.alpha_bar = alpha_bar
        self.s = np.sqrt((np.float32(1.0) - alpha_bar) / alpha_bar)
        self.log_s = np.log(self.s)

    def at(self, t: Num[np.ndarray, " n"]) -> Host:
        """Noise level at any time, linear between timesteps."""
        return np.interp(t, np.arange(len(self.s)), self.s)

    def time_of(self, s: Host) -> Host:
        """Time of any noise level, linear in its logarithm between timesteps, and the nearest one outside.

        Not `np.interp`: where times are cut to integers, the last bit of the weights decides.
        """
        log_s = np.log(np.maximum(s, 1e-10))
        low = np.clip(np.searchsorted(self.log_s, log_s, side="right") - 1, 0, len(self.s) - 2)
        below, above = self.log_s[low], self.log_s[low + 1]
        weight = np.clip((below - log_s) / (below - above), 0.0, 1.0)
        return (1.0 - weight) * low + weight * (low + 1)


def ddim_timesteps(options: Options, count: int) -> Num[np.ndarray, " n"]:
    """Timesteps of DDPM, DDIM and PNDM.

    Raises:
        UserError: more steps than timesteps, an unknown spacing, or an offset that leads out of the schedule.
    """
    total = options["num_train_timesteps"]
    if not 1 <= count <= total:
        raise UserError(f"num_sample_steps={count} must lie between 1 and num_train_timesteps={total}")
    t = spaced_timesteps(options, total, total, count, count).round().astype(np.int64)
    return checked_timesteps(options, t)


def checked_timesteps(options: Options, t: Num[np.ndarray, " n"]) -> Num[np.ndarray, " n"]:
    """The timesteps themselves.

    Raises:
        UserError: they lie outside the schedule.
    """
    total = options["num_train_timesteps"]
    if len(t) == 0 or t.max() >= total or t.min() < 0:
        raise UserError(
            f"{options['class']}: timesteps {t.tolist()} do not lie in 0 to {total - 1}; check steps_offset"
        )
    return t


def spaced_timesteps(options: Options, total: int, last: int, count: int, parts: int) -> Float[np.ndarray, " n"]:
    """`count` timesteps from high to low; `parts` is one more where diffusers leaves out the last one of linspace."""
    refuse(options, "timestep_spacing", "linspace", "leading", "trailing")
    match options["timestep_spacing"]:
        case "linspace":
            return np.linspace(0, last - 1, parts)[::-1][:count]
        case "leading":
            return (np.arange(parts) * (last // parts))[::-1][:count] + float(options["steps_offset"])
        case _:
            return np.arange(last, 0, -total / count).round() - 1.0


def sigma_grid(
    options: Options, count: int, timesteps: Sequence[float | int] | None, *, round_times: bool = False
) -> Grid:
    """The grid of the Euler family: noise levels spaced between those of the first and the last timestep.

    Raises:
        UserError: options that do not go together.
    """
    config = schedule_of(options)
    levels, total = Levels(config), config.num_train_timesteps
    if timesteps is None:
        t = spaced_timesteps(options, total, total, count, count).astype(np.float32)
    else:
        t = np.asarray(timesteps, np.float32)
        refuse_respaced(options, "timesteps")
    s, spacing = levels.at(t), spacing_of(options)
    if options.get("interpolation_type", "linear") != "linear":
        refuse(options, "interpolation_type", "linear", "log_linear")
        s = np.exp(_linspace(float(levels.log_s[-1]), float(levels.log_s[0]), len(t) + 1)).astype(np.float64)
    if spacing != "schedule":
        s = respaced_levels(options, spacing, s, len(t))
        t = levels.time_of(s)
        t = t.round() if round_times and spacing == "karras" else t
    ended = ended_levels(options, s, levels)[: len(t) + 1]  # log_linear has one level more, and ends there
    return chain(_continuous(options, t, s[: len(t)]), ended, "preserving", levels.time_of)


def sigma_grid_at(options: Options, sigmas: Sequence[float | int]) -> Grid:
    """The grid of noise levels that are given, the last of them the one to end at."""
    levels, s = Levels(schedule_of(options)), np.asarray(sigmas, np.float32).astype(np.float64)
    return chain(_continuous(options, levels.time_of(s[:-1]), s[:-1]), s, "preserving", levels.time_of)


def _continuous(options: Options, t: Num[np.ndarray, " n"], s: Host) -> Num[np.ndarray, " n"]:
    """Times as the denoiser takes them: timesteps, or ln(s) / 4 for one trained on continuous levels."""
    refuse(options, "timestep_type", "discrete", "continuous")
    if options.get("timestep_type") == "continuous" and options["prediction_type"] == "v_prediction":
        return 0.25 * np.log(s[: len(t)].astype(np.float32)).astype(np.float64)
    return t.astype(np.float32)


def ended_levels(
    options: Options, s: Host, levels: Levels, smallest: float | None = None
) -> Float64[np.ndarray, " n_plus_1"]:
    """The noise levels with the one at which sampling ends, rounded to float32 as diffusers keeps them."""
    refuse(options, "final_sigmas_type", "zero", "sigma_min")
    if options.get("final_sigmas_type", "zero") == "zero":
        end = 0.0
    else:
        end = float(levels.s[0]) if smallest is None else smallest
    return np.append(s, end).astype(np.float32).astype(np.float64)


def spacing_of(options: Options) -> SigmaSpacing:
    """Which spacing of noise levels is switched on.

    Raises:
        UserError: more than one.
    """
    names: tuple[SigmaSpacing, ...] = ("karras", "exponential", "beta")
    chosen: list[SigmaSpacing] = [name for name in names if options.get(f"use_{name}_sigmas")]
    if len(chosen) > 1:
        raise UserError(
            f"{options['class']}: only one of {', '.join(f'use_{name}_sigmas' for name in chosen)} can be True"
        )
    return chosen[0] if chosen else "schedule"


def respaced_levels(
    options: Options, spacing: SigmaSpacing, s: Float[np.ndarray, " m"], count: int
) -> Float64[np.ndarray, " n"]:
    """Noise levels between the first and the last of `s`, or between those that the options name."""
    low, high = options.get("sigma_min"), options.get("sigma_max")
    s_max, s_min = float(s[0]) if high is None else high, float(s[-1]) if low is None else low
    return spaced_sigmas(spacing, s_max, s_min, count)


def refuse_respaced(options: Options, what: str) -> None:
    """Refuse timesteps together with an option that chooses noise levels.

    Raises:
        UserError: they come together.
    """
    if spacing_of(options) != "schedule" or options.get("use_lu_lambdas"):
        raise UserError(f"{options['class']}: {what} cannot be given where noise levels are spaced by an option")
