"""Heun's method in the noise level, with the optional churn of Karras et al.

(1) y1 = y + (s' - s) d(y, s),   y' = y + (s' - s) (d(y, s) + d(y1, s')) / 2      Karras et al. 2022, 2206.00364, alg. 1
(2) churn: s is first raised to (1 + gamma) s with noise of spread s_noise, where s_min <= s <= s_max, with
    gamma = min(churn / n, sqrt(2) - 1)                                           the same, algorithm 2

The last step, to clean data, is Euler's. n steps make 2 n - 1 calls.
"""

from typing import NamedTuple

import numpy as np

from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid, Host, alpha_sigma, finite_grid
from ldm_jax.diffusion.samplers.linear import Call, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError


class Churn(NamedTuple):
    """How much noise is put back before each step (2)."""

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = float("inf")
    s_noise: float = 1.0


NO_CHURN = Churn()


def heun(grid: Grid, prediction: Prediction, *, clipping: Clipping = NO_CLIPPING, churn: Churn = NO_CHURN) -> Sampler:
    """Heun's method (1), from the grid's first level to its last.

    Raises:
        UserError: churn on the straight path, or a negative one.
    """
    if churn.churn < 0 or (churn.churn > 0 and grid.kind == "flow"):
        raise UserError(f"churn={churn.churn} must not be negative, and is 0 on the straight path of flow matching")
    raised, added = _raised(grid, churn)
    n = grid.num_steps
    every = raised.join(grid.take(np.arange(1, n)))
    read = Reader(every, prediction, clipping, memory=2, scaled=True)
    base, slope = read.memory
    h = read.grid.s_next - read.grid.s
    calls = []
    for i in range(n):
        d = read.slope(i)
        calls.append(Call(i, read.z + h[i] * d, [read.z, d], added[i]))
        if i < n - 1:
            corrected = base + h[i] * (slope + read.slope(n + i)) / 2
            calls.append(Call(n + i, corrected, [base, slope]))
    return read.sampler(calls, first=grid)


def _raised(grid: Grid, churn: Churn) -> tuple[Grid, Host]:
    """The grid with each step starting from its raised level, and the spread of the noise that takes it there (2)."""
    if churn.churn == 0.0:
        return grid, np.zeros(grid.num_steps)
    grid = finite_grid(grid, scaled=True)
    s = grid.s
    within = (churn.s_min <= s) & (s <= churn.s_max)
    raised = s * (1.0 + np.where(within, min(churn.churn / grid.num_steps, 2**0.5 - 1), 0.0))
    alpha, sigma = alpha_sigma(grid.kind, raised)
    times = np.where(raised > s, grid.time_of(raised), grid.t)
    return grid._replace(t=times, alpha=alpha, sigma=sigma), churn.s_noise * np.sqrt(raised**2 - s**2)
