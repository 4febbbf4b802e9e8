"""Euler's method in the noise level, deterministic and ancestral.

(1) y' = y + (s' - s) dy/ds                                            Karras et al. 2022, arXiv:2206.00364, eq. 3
(2) ancestral: down to s_down, then up to s' by fresh noise: s_up^2 = s'^2 (s^2 - s'^2) / s^2, s_down^2 = s'^2 - s_up^2
    the posterior of the forward process                               Song et al. 2020, arXiv:2011.13456, appendix F

On the straight path (1) is the Euler method of flow matching, z' = z + (s' - s) flow.
"""

import numpy as np

from ldm_jax.diffusion.samplers.ddim import ddim
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid, Host
from ldm_jax.diffusion.samplers.linear import Call, Preconditioned, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler


def euler(grid: Grid, prediction: Prediction, *, clipping: Clipping = NO_CLIPPING) -> Sampler:
    """Euler's method (1), with one call for each step of the grid."""
    read = Reader(grid, prediction, clipping, scaled=True)
    h = read.grid.s_next - read.grid.s
    return read.sampler([Call(i, read.z + h[i] * read.slope(i)) for i in range(grid.num_steps)])


def euler_ancestral(grid: Grid, prediction: Prediction, *, clipping: Clipping = NO_CLIPPING) -> Sampler:
    """Ancestral sampling (2), with one call for each step of the grid.

    On the straight path the posterior is not (2) but that of DDIM with eta = 1, which is used there.
    """
    if grid.kind == "flow" and not isinstance(prediction, Preconditioned):
        return ddim(grid, prediction, eta=1.0, clipping=clipping)
    read = Reader(grid, prediction, clipping, scaled=True)
    down, up = ancestral_levels(read.grid.s, read.grid.s_next)
    h = down - read.grid.s
    calls = [Call(i, read.z + h[i] * read.slope(i) + up[i] * read.noise) for i in range(grid.num_steps)]
    return read.sampler(calls)


def ancestral_levels(s: Host, s_next: Host) -> tuple[Host, Host]:
    """Levels s_down and s_up of (2)."""
    up = s_next / s * np.sqrt((s**2 - s_next**2).clip(0.0))
    return np.sqrt((s_next**2 - up**2).clip(0.0)), up


def flow_renoising(grid: Grid, prediction: Prediction, *, clipping: Clipping = NO_CLIPPING) -> Sampler:
    """z' = alpha' x0 + sigma' noise: every step starts from the estimate with all of its noise drawn anew.

    Song et al. 2023 (consistency models), arXiv:2303.01469, algorithm 1.
    """
    read = Reader(grid, prediction, clipping)
    alpha, sigma = grid.alpha_next, grid.sigma_next
    return read.sampler([Call(i, alpha[i] * read.x0(i) + sigma[i] * read.noise) for i in range(grid.num_steps)])
