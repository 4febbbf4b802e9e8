"""The classical Runge-Kutta method of fourth order in the logarithm of the noise level.

(1) with u = ln(s): dy/du = y - x0(y, s)                                from grid.py, (3)
(2) y' = y + (k1 + 2 k2 + 2 k3 + k4) / 6, the slopes k at the step's start, twice half-way in u, and at its end

The last step, to clean data, is Euler's in s. n steps make 4 n - 3 calls.
"""

import numpy as np

from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid, finite_grid
from ldm_jax.diffusion.samplers.linear import Call, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler


def rk4(grid: Grid, prediction: Prediction, *, clipping: Clipping = NO_CLIPPING) -> Sampler:
    """The Runge-Kutta method (2)."""
    finite = finite_grid(grid)
    n, u = grid.num_steps, np.log(finite.s)
    half = np.exp((u[:-1] + u[1:]) / 2.0)
    read = Reader(
        grid.join(grid.at_level(half)).join(grid.take(np.arange(1, n))), prediction, clipping, memory=2, scaled=True
    )
    base, total = read.memory
    calls = []
    for i in range(n - 1):
        h, middle = u[i + 1] - u[i], n + i
        k = h * (read.z - read.x0(i))
        calls.append(Call(i, read.z + k / 2, [read.z, k / 6]))
        k = h * (read.z - read.x0(middle))
        calls += [Call(middle, base + k / 2, [base, total + k / 3]), Call(middle, base + k, [base, total + k / 3])]
        k = h * (read.z - read.x0(2 * n - 1 + i))
        calls.append(Call(2 * n - 1 + i, base + total + k / 6, [base, total]))
    end = finite.s_next[-1] - finite.s[-1]
    calls.append(Call(n - 1, read.z + end * read.slope(n - 1), [base, total]))
    return read.sampler(calls)
