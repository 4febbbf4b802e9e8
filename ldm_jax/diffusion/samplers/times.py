"""Which of the training timesteps a sampler visits.

With T training timesteps and n steps, counted from 0 and visited from high to low:

(1) leading:  t_i = i floor(T / n) + offset       DDIM's and Stable Diffusion's choice; never reaches T - 1
(2) linspace: t_i = round(i (T - 1) / (n - 1))    both ends
(3) trailing: t_i = round((i + 1) T / n) - 1      starts at pure noise: the one that fits zero terminal SNR
                                                  Lin et al. 2023, arXiv:2305.08891, table 2
"""

from typing import NamedTuple, assert_never

import numpy as np
from jaxtyping import Float64, Int

from ldm_jax.config import Spacing
from ldm_jax.diffusion.schedule import CLEAN, NoiseSchedule
from ldm_jax.errors import UserError


class Times(NamedTuple):
    """Where each step starts and where it leads, as training timesteps; `CLEAN` (-1) is clean data."""

    t: Int[np.ndarray, " n"]
    t_next: Int[np.ndarray, " n"]


def spaced_times(
    num_train_timesteps: int,
    num_sample_steps: int,
    spacing: Spacing = "trailing",
    *,
    steps_offset: int = 0,
    end_clean: bool = True,
) -> Times:
    """Choose the timesteps (1), (2), (3).

    Args:
        num_train_timesteps: T.
        num_sample_steps: n.
        spacing: how the n steps lie in [0, T).
        steps_offset: added to every timestep of `leading`; Stable Diffusion has 1.
        end_clean: whether the last step leads to clean data, or to the first training timestep (alpha[0]), as
            Stable Diffusion's samplers do (diffusers' set_alpha_to_one=False).

    Raises:
        UserError: n is not in [1, T], or the offset leads out of [0, T).
    """
    total, count = num_train_timesteps, num_sample_steps
    if not 1 <= count <= total:
        raise UserError(f"num_sample_steps={count} must lie between 1 and num_train_timesteps={total}")
    match spacing:
        case "leading":
            t = np.arange(count)[::-1] * (total // count) + steps_offset
        case "linspace":
            t = np.linspace(0, total - 1, count).round()[::-1].astype(np.int64)
        case "trailing":
            # arange, not i * T / n: where a half is rounded, other samplers of this spacing get the same timestep
            t = np.arange(total, 0, -total / count)[:count].round().astype(np.int64) - 1
        case _:
            assert_never(spacing)
    if t[0] >= total or t[-1] < 0:
        raise UserError(
            f"steps_offset={steps_offset} with num_sample_steps={count} leads to timesteps {t[-1]} to {t[0]}, outside "
            f"0 to {total - 1}; use an offset between 0 and {total - 1 - (count - 1) * (total // count)}"
        )
    return Times(t, np.append(t[1:], CLEAN if end_clean else 0))


def levels(
    schedule: NoiseSchedule, t: Int[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Read alpha and sigma at timesteps, on the host in float64; `CLEAN` has alpha 1 and sigma 0."""
    alpha, sigma = np.asarray(schedule.alpha, np.float64), np.asarray(schedule.sigma, np.float64)
    return np.where(t < 0, 1.0, alpha[t]), np.where(t < 0, 0.0, sigma[t])
