"""The grid of a sampler: at which times it calls the denoiser, and between which noise levels its steps lead.

Two coordinates are in use. Most methods move z_t itself; those of Karras et al. integrate an ordinary differential
equation in the noise level s, whose variable y is z_t scaled so that its signal is the data's own:

(1) variance preserving: y = z_t / alpha_t,  s = sigma_t / alpha_t      Karras et al. 2022, arXiv:2206.00364, section 2
(2) straight path (flow matching): y = z_t,  s = sigma_t                Esser et al. 2024, arXiv:2403.03206, section 2
(3) dy/ds = (y - x0(y, s)) / s, on either path                          Karras et al. 2022, eq. 1 and 3

On the path `edm` alpha is 1, and the denoiser is called with c_in y at the time ln(s) / 4 (the same, table 1).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float64, Int, Num

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.samplers.times import Times, levels
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import UserError

Host: TypeAlias = Float64[np.ndarray, " n"]
"""One number for each step, on the host."""

PathKind: TypeAlias = Literal["preserving", "flow", "edm"]

SMALLEST_ALPHA = 2.0**-12
"""Signal given to a timestep without any, where a method needs the logarithm of the signal-to-noise ratio."""


class Grid(NamedTuple):
    """Times and noise levels of n steps, on the host in float64."""

    t: Num[np.ndarray, " n"]
    """What the denoiser is told, from noise to data."""
    alpha: Host
    sigma: Host
    alpha_next: Host
    sigma_next: Host
    time_of: Callable[[Host], Host]
    """Time of any noise level s (1), (2) of the path."""
    kind: PathKind = "preserving"

    @property
    def s(self) -> Host:
        """Noise level at which each step starts."""
        return noise_level(self.kind, self.alpha, self.sigma)

    @property
    def s_next(self) -> Host:
        """Noise level to which each step leads."""
        return noise_level(self.kind, self.alpha_next, self.sigma_next)

    @property
    def num_steps(self) -> int:
        """n."""
        return len(self.t)

    def take(self, index: Int[np.ndarray, " m"]) -> "Grid":
        """Some of the steps, in the order given; a step may come twice."""
        return self._replace(
            t=self.t[index],
            alpha=self.alpha[index],
            sigma=self.sigma[index],
            alpha_next=self.alpha_next[index],
            sigma_next=self.sigma_next[index],
        )

    def join(self, other: "Grid") -> "Grid":
        """These steps and then those of another grid of the same path."""
        return self._replace(
            t=np.concatenate([self.t, other.t]),
            alpha=np.concatenate([self.alpha, other.alpha]),
            sigma=np.concatenate([self.sigma, other.sigma]),
            alpha_next=np.concatenate([self.alpha_next, other.alpha_next]),
            sigma_next=np.concatenate([self.sigma_next, other.sigma_next]),
        )

    def at_level(self, s: Host) -> "Grid":
        """Rows for calls at noise levels s of the path, for methods that call the denoiser inside a step."""
        alpha, sigma = alpha_sigma(self.kind, s)
        return self._replace(t=self.time_of(s), alpha=alpha, sigma=sigma, alpha_next=alpha, sigma_next=sigma)


def noise_level(kind: PathKind, alpha: Host, sigma: Host) -> Host:
    """The noise level s (1), (2)."""
    return sigma if kind == "flow" else sigma / alpha


def alpha_sigma(kind: PathKind, s: Host) -> tuple[Host, Host]:
    """Inverse of `noise_level` on the path."""
    match kind:
        case "preserving":
            alpha = 1.0 / np.sqrt(np.square(s) + 1.0)
            return alpha, s * alpha
        case "flow":
            return 1.0 - s, s
        case "edm":
            return np.ones_like(s), s


def chain(t: Num[np.ndarray, " n"], s: Float64[np.ndarray, " n_plus_1"], kind: PathKind, time_of: Callable) -> Grid:
    """A grid whose steps follow each other through the noise levels `s`."""
    alpha, sigma = alpha_sigma(kind, np.asarray(s, np.float64))
    return Grid(t, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], time_of, kind)


def schedule_grid(schedule: NoiseSchedule, times: Times) -> Grid:
    """The grid of training timesteps."""
    alpha, sigma = levels(schedule, times.t)
    alpha_next, sigma_next = levels(schedule, times.t_next)
    return Grid(times.t, alpha, sigma, alpha_next, sigma_next, schedule_times(schedule), schedule_kind(schedule))


def schedule_kind(schedule: NoiseSchedule) -> PathKind:
    """Which path a schedule takes, seen where the two differ most."""
    alpha, sigma = np.asarray(schedule.alpha, np.float64), np.asarray(schedule.sigma, np.float64)
    return "flow" if np.abs(alpha + sigma - 1.0).max() < np.abs(alpha**2 + sigma**2 - 1.0).max() else "preserving"


def schedule_times(schedule: NoiseSchedule) -> Callable[[Host], Host]:
    """From noise level to training timestep, linear in ln(s) between timesteps, and the nearest one outside."""
    kind = schedule_kind(schedule)
    every = levels(schedule, np.arange(schedule.num_train_timesteps))
    alpha, sigma = with_signal(kind, *every)
    log_s = np.log(noise_level(kind, alpha, sigma))
    return lambda s: np.interp(np.log(s), log_s, np.arange(len(log_s), dtype=np.float64))


def with_signal(kind: PathKind, alpha: Host, sigma: Host) -> tuple[Host, Host]:
    """The same noise levels with a trace of signal where there is none, so that ln(alpha / sigma) is finite."""
    trace = min(SMALLEST_ALPHA, alpha[alpha > 0.0].min(initial=1.0) / 2.0)
    sigma_there = 1.0 - trace if kind == "flow" else np.sqrt(1.0 - trace**2)
    return np.where(alpha == 0.0, trace, alpha), np.where(alpha == 0.0, sigma_there, sigma)


def finite_grid(grid: Grid) -> Grid:
    """The grid for a method that divides by alpha or takes the logarithm of the signal-to-noise ratio."""
    alpha, sigma = with_signal(grid.kind, grid.alpha, grid.sigma)
    return grid._replace(alpha=alpha, sigma=sigma)


def require_signal(prediction_type: PredictionType, alpha: Host) -> None:
    """Refuse to divide by zero.

    Raises:
        UserError: the denoiser predicts epsilon and a step starts where there is no signal.
    """
    if prediction_type == "epsilon" and not alpha.all():
        raise UserError(
            "prediction_type=epsilon cannot be sampled from a timestep with zero SNR, where z_t is the noise itself; "
            "use v or x0, or a schedule with zero_terminal_snr=False"
        )


def inverse_grid(grid: Grid) -> Grid:
    """The same path from data to noise, for inversion (Mokady et al. 2022, arXiv:2211.09794, section 3.2).

    Each step calls the denoiser at the time it leads to, with the latent it comes from: the time of clean data is
    none that the denoiser was trained for.
    """
    back = grid.take(np.arange(grid.num_steps)[::-1])
    return back._replace(alpha=back.alpha_next, sigma=back.sigma_next, alpha_next=back.alpha, sigma_next=back.sigma)
