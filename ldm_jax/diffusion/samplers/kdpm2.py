"""DPM-Solver-2 in the noise level: a midpoint method, deterministic and ancestral.

(1) s_mid = sqrt(s s'),  y_mid = y + (s_mid - s) d(y, s),  y' = y + (s' - s) d(y_mid, s_mid)
    Karras et al. 2022, arXiv:2206.00364, algorithm 3 with the midpoint of ln s, which makes it DPM-Solver-2
    (Lu et al. 2022, arXiv:2206.00927, algorithm 1)
(2) ancestral: (1) down to s_down instead of s', then up to s' by fresh noise (euler.py, (2))

The last step, to clean data, is Euler's. n steps make 2 n - 1 calls.
"""

import numpy as np

from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.euler import ancestral_levels
from ldm_jax.diffusion.samplers.grid import Grid, finite_grid
from ldm_jax.diffusion.samplers.linear import Call, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError


def kdpm2(grid: Grid, prediction: Prediction, *, clipping: Clipping = NO_CLIPPING) -> Sampler:
    """The midpoint method (1)."""
    return _midpoint(grid, prediction, clipping, ancestral=False)


def kdpm2_ancestral(grid: Grid, prediction: Prediction, *, clipping: Clipping = NO_CLIPPING) -> Sampler:
    """The ancestral midpoint method (2).

    Raises:
        UserError: on the straight path, whose posterior is another.
    """
    if grid.kind == "flow":
        raise UserError("sampler=kdpm2_ancestral is not for the straight path of flow matching; use euler_ancestral")
    return _midpoint(grid, prediction, clipping, ancestral=True)


def _midpoint(grid: Grid, prediction: Prediction, clipping: Clipping, *, ancestral: bool) -> Sampler:
    n, finite = grid.num_steps, finite_grid(grid)
    s, target, up = finite.s, finite.s_next, np.zeros(grid.num_steps)
    if ancestral:
        target, up = ancestral_levels(s, finite.s_next)
    middle = np.sqrt(s[:-1] * target[:-1])
    read = Reader(grid.join(grid.at_level(middle)), prediction, clipping, memory=1, scaled=True)
    (base,) = read.memory
    calls = []
    for i in range(n - 1):
        calls.append(Call(i, read.z + (middle[i] - s[i]) * read.slope(i), [read.z]))
        end = base + (target[i] - s[i]) * read.slope(n + i) + up[i] * read.noise
        calls.append(Call(n + i, end, [base]))
    calls.append(Call(n - 1, read.z + (target[-1] - s[-1]) * read.slope(n - 1), [read.z]))
    return read.sampler(calls)
