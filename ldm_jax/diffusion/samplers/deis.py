"""DEIS: exponential integration with polynomials in ln(rho), rho = sigma / alpha.

(1) z' = alpha' (z / alpha + integral from rho to rho' of P(ln tau) dtau), P the polynomial in ln(tau) through the last
    `order` estimates of epsilon                     Zhang and Chen 2022, arXiv:2204.13902, eq. 14 and 15
"""

import numpy as np

from ldm_jax.diffusion.samplers.dpm_solver import FEW_STEPS
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid, Host
from ldm_jax.diffusion.samplers.linear import Call, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError


def deis(
    grid: Grid,
    prediction: Prediction,
    *,
    order: int = 2,
    lower_order_final: bool = True,
    clipping: Clipping = NO_CLIPPING,
) -> Sampler:
    """The multistep method (1) of order 1, 2 or 3, with one call for each step of the grid.

    Args:
        grid: times and noise levels.
        prediction: what the denoiser predicts.
        order: points of the polynomial; the first steps have as many as their history allows.
        lower_order_final: let the order fall towards the end of runs of fewer than 15 steps.
        clipping: bounds of x0.

    Raises:
        UserError: an order beyond 3.
    """
    if not 1 <= order <= 3:
        raise UserError(f"order={order} of deis must lie between 1 and 3")
    read = Reader(grid, prediction, clipping, memory=order - 1)
    rho, rho_next = read.grid.sigma / read.grid.alpha, read.grid.sigma_next / read.grid.alpha_next
    calls = []
    for i in range(grid.num_steps):
        outputs = [read.epsilon(i), *read.memory]
        lower = lower_order_final and grid.num_steps < FEW_STEPS
        used = min(order, i + 1, grid.num_steps - i if lower else order)
        weights = log_polynomial_weights(rho[i - used + 1 : i + 1][::-1], rho[i], rho_next[i])
        step = sum(w * m for w, m in zip(weights, outputs, strict=False))
        z = read.grid.alpha_next[i] * (read.z / read.grid.alpha[i] + step)
        calls.append(Call(i, z, outputs[: order - 1]))
    return read.sampler(calls)


def log_polynomial_weights(nodes: Host, begin: float, end: float) -> Host:
    """Integral of each Lagrange polynomial in ln(tau) over tau from begin to end, which may be 0."""
    weights = []
    for i, node in enumerate(nodes):
        others = np.log(np.delete(nodes, i))
        roots = np.atleast_1d(np.poly(others)) / np.prod(np.log(node) - others)
        weights.append(_antiderivative(roots, end) - _antiderivative(roots, begin))
    return np.array(weights)


def _antiderivative(coefficients: Host, tau: float) -> float:
    """Of a polynomial in ln(tau), highest power first: I_k = tau ln(tau)^k - k I_(k-1), and 0 at tau = 0."""
    if tau == 0.0:
        return 0.0
    total, integral, power = 0.0, 0.0, 1.0
    for k, coefficient in enumerate(coefficients[::-1]):
        integral = tau * power - k * integral
        total += coefficient * integral
        power *= np.log(tau)
    return total
