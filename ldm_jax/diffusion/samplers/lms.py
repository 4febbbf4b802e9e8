"""Linear multistep in the noise level (Adams-Bashforth with uneven steps).

(1) y' = y + integral from s to s' of P(tau) dtau, P the polynomial through the last `order` slopes
    Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section III.5; Crowson's k-diffusion
"""

import numpy as np

from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid, Host
from ldm_jax.diffusion.samplers.linear import Call, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler


def lms(grid: Grid, prediction: Prediction, *, order: int = 4, clipping: Clipping = NO_CLIPPING) -> Sampler:
    """The multistep method (1); the first steps have the order that their history allows."""
    read = Reader(grid, prediction, clipping, memory=order - 1, scaled=True)
    s, s_next, calls = read.grid.s, read.grid.s_next, []
    for i in range(grid.num_steps):
        slopes = [read.slope(i), *read.memory]
        used = min(i + 1, order)
        weights = polynomial_weights(s[i - used + 1 : i + 1][::-1], s[i], s_next[i])
        step = sum(w * d for w, d in zip(weights, slopes, strict=False))
        calls.append(Call(i, read.z + step, slopes[: order - 1]))
    return read.sampler(calls)


def polynomial_weights(nodes: Host, begin: float, end: float) -> Host:
    """Integral from begin to end of each Lagrange polynomial of the nodes, exact by Gauss-Legendre quadrature."""
    points, weights = np.polynomial.legendre.leggauss(len(nodes))
    points = begin + (end - begin) * (points + 1.0) / 2.0
    values = [
        np.prod([(points - other) / (node - other) for other in nodes if other != node], axis=0) for node in nodes
    ]
    return np.array([np.sum(weights * value) * (end - begin) / 2.0 for value in values])
