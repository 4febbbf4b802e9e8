"""The noise schedule: how much signal and how much noise z_t holds at each training timestep.

(1) z_t = alpha_t z_0 + sigma_t epsilon, alpha_t^2 + sigma_t^2 = 1      Ho et al. 2020, arXiv:2006.11239, eq. 4
(2) alpha_bar_t = alpha_t^2 = prod_{s <= t} (1 - beta_s)                the same
(3) SNR_t = alpha_t^2 / sigma_t^2                                       Kingma et al. 2021, arXiv:2107.00630
(4) cosine: alpha_bar = cos^2((t / T + 0.008) / 1.008 * pi / 2)         Nichol and Dhariwal 2021, 2102.09672, eq. 17
(5) zero terminal SNR: alpha_t <- (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T)
                                                                        Lin et al. 2023, arXiv:2305.08891, algorithm 1
(6) flow: sigma_t = shift u / (1 + (shift - 1) u) with u = (t + 1) / T, alpha_t = 1 - sigma_t, a straight path
    in place of the circle of (1)                                       Esser et al. 2024, arXiv:2403.03206, eq. 23
(7) sigmoid: beta is a logistic curve over [-6, 6] from beta_start to beta_end  Xu et al. 2022, arXiv:2203.02923
(8) exponential: alpha_bar = exp(-12 t / T)

Timesteps count from 0, so alpha[0] is the papers' alpha_1 and alpha[T - 1] their alpha_T.
"""

from typing import NamedTuple, TypeAlias, assert_never

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from ldm_jax.config import ScheduleConfig
from ldm_jax.errors import UserError

CLEAN = -1
"""The timestep of clean data, one before the first: alpha = 1 and sigma = 0."""

PerSample: TypeAlias = Float[Array, ""] | Float[Array, " b"]
"""One number for all samples, or one for each."""


class NoiseSchedule(NamedTuple):
    """The forward process (1), (2) or (6) as float32 arrays over the T training timesteps.

    On the straight path of flow matching (6) alpha_bar is alpha^2 still, and beta the share of it that a step loses.
    alpha and sigma are each rounded once from float64, so that both keep full relative precision at either end,
    where `1 - alpha_bar` in float32 would not.
    """

    beta: Float[Array, " T"]
    alpha_bar: Float[Array, " T"]
    alpha: Float[Array, " T"]
    sigma: Float[Array, " T"]

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.alpha.shape[0]

    @property
    def snr(self) -> Float[Array, " T"]:
        """Signal-to-noise ratio (3)."""
        return jnp.square(self.alpha / self.sigma)

    @property
    def log_snr(self) -> Float[Array, " T"]:
        """Natural logarithm of the signal-to-noise ratio (3); minus infinity where it is zero."""
        return 2.0 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    def at(self, t: Int[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Pick alpha and sigma at timesteps in [-1, T); -1 is clean data."""
        index = jnp.maximum(t, 0)
        return jnp.where(t < 0, 1.0, self.alpha[index]), jnp.where(t < 0, 0.0, self.sigma[index])


def per_sample(values: PerSample, z: Float[Array, "b *spatial c"]) -> Float[Array, "..."]:
    """Shape numbers of the samples so that they multiply z."""
    return values.reshape(values.shape + (1,) * (z.ndim - values.ndim))


def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """Compute the schedule in float64 and keep it in float32.

    Raises:
        UserError: the signal falls below what float32 holds before the last timestep.
    """
    if config.kind == "flow":
        return _straight(config)
    beta = _betas(config)
    alpha = np.sqrt(np.cumprod(1.0 - beta))
    if config.zero_terminal_snr:
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])  # (5): exactly 0 at the end
        beta = 1.0 - np.square(alpha / np.append(1.0, alpha[:-1]))
    _require_signal(config, alpha)
    arrays = (beta, np.square(alpha), alpha, np.sqrt(1.0 - np.square(alpha)))
    return NoiseSchedule(*(jnp.asarray(a.astype(np.float32)) for a in arrays))


def _straight(config: ScheduleConfig) -> NoiseSchedule:
    u = (np.arange(config.num_train_timesteps) + 1.0) / config.num_train_timesteps
    sigma = config.shift * u / (1.0 + (config.shift - 1.0) * u)  # (6)
    alpha = 1.0 - sigma
    beta = 1.0 - np.square(alpha / np.append(1.0, alpha[:-1]))
    return NoiseSchedule(*(jnp.asarray(a.astype(np.float32)) for a in (beta, np.square(alpha), alpha, sigma)))


def _betas(config: ScheduleConfig) -> Float64[np.ndarray, " T"]:
    first, last, count = config.beta_start, config.beta_end, config.num_train_timesteps
    match config.kind:
        case "linear":
            return np.linspace(first, last, count)
        case "scaled_linear":
            return np.square(np.linspace(np.sqrt(first), np.sqrt(last), count))
        case "sqrt":
            return np.sqrt(np.linspace(first, last, count))
        case "cosine":
            alpha_bar = np.square(np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2))  # (4)
            return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)  # capped as in the paper, section 3.2
        case "sigmoid":
            return first + (last - first) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, count)))  # (7)
        case "exponential":
            return np.full(count, min(-np.expm1(-12.0 / count), 0.999))  # (8)
        case "flow":
            raise ValueError("the straight path has no betas of its own")
        case _:
            assert_never(config.kind)


def _require_signal(config: ScheduleConfig, alpha: Float64[np.ndarray, " T"]) -> None:
    """Below the smallest normal float32 XLA may flush to zero, and a 0 inside a schedule is a 0/0 later."""
    before_last = alpha[:-1] if config.zero_terminal_snr else alpha
    lost = np.flatnonzero(before_last < np.finfo(np.float32).tiny)
    if lost.size:
        raise UserError(
            f"ScheduleConfig.kind={config.kind} with num_train_timesteps={config.num_train_timesteps} and "
            f"beta_end={config.beta_end} leaves no signal from timestep {lost[0]} on (alpha={alpha[lost[0]]:.1e}); "
            "lower beta_end or num_train_timesteps"
        )
