"""Spacings of noise levels: where between the largest and the smallest s of a grid its steps lie.

With u running evenly from 0 to 1 over n levels, s_max the first and s_min the last:

(1) karras:      s = (s_max^(1/7) + u (s_min^(1/7) - s_max^(1/7)))^7       Karras et al. 2022, arXiv:2206.00364, eq. 5
(2) exponential: ln s = ln s_max + u (ln s_min - ln s_max)                 even steps of the log SNR
(3) beta:        s = s_min + Q(1 - u) (s_max - s_min), Q the quantile function of Beta(0.6, 0.6)
                                                                           Lee et al. 2024, arXiv:2407.12173
"""

from typing import assert_never

import numpy as np

from ldm_jax.config import SigmaSpacing
from ldm_jax.diffusion.samplers.grid import Grid, Host, chain, finite_grid

RHO = 7.0
BETA = 0.6


def spaced_sigmas(spacing: SigmaSpacing, s_max: float, s_min: float, count: int, rho: float = RHO) -> Host:
    """Noise levels (1), (2), (3), from high to low.

    Args:
        spacing: which of them; `schedule` is none of them.
        s_max: the first level.
        s_min: the last level, greater than 0.
        count: n.
        rho: the 7 of (1).
    """
    u = np.linspace(0.0, 1.0, count)
    match spacing:
        case "karras":
            first, last = s_max ** (1 / rho), s_min ** (1 / rho)
            return (first + u * (last - first)) ** rho
        case "exponential":
            return np.exp(np.linspace(np.log(s_max), np.log(s_min), count))
        case "beta":
            from scipy.special import betaincinv  # a third of a second that no other spacing has to wait for

            return s_min + betaincinv(BETA, BETA, 1.0 - u) * (s_max - s_min)
        case "schedule":
            raise ValueError("the schedule's own levels are not spaced")
        case _:
            assert_never(spacing)


def respaced(grid: Grid, spacing: SigmaSpacing) -> Grid:
    """The grid with the same first and last call and its noise levels in between spaced otherwise."""
    if spacing == "schedule":
        return grid
    finite = finite_grid(grid, scaled=True)
    s = spaced_sigmas(spacing, finite.s[0], finite.s[-1], grid.num_steps)
    return chain(grid.time_of(s), np.append(s, grid.s_next[-1]), grid.kind, grid.time_of)
