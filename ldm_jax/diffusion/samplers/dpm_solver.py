"""DPM-Solver and DPM-Solver++, multistep, deterministic and stochastic.

With lambda = ln(alpha / sigma), h = lambda' - lambda, m the estimate of x0 (++) or of epsilon, D0, D1, D2 the value and
the first two scaled differences of m at the step's start:

(1) dpmsolver++:     z' = (sigma'/sigma) z
                          + alpha' [(1 - e^-h) D0 + ((e^-h - 1)/h + 1) D1 - ((e^-h - 1 + h)/h^2 - 1/2) D2]
                                                                        Lu et al. 2022, arXiv:2211.01095, eq. 9, app. B
(2) dpmsolver:       z' = (alpha'/alpha) z
                          - sigma' [(e^h - 1) D0 + ((e^h - 1)/h - 1) D1 + ((e^h - 1 - h)/h^2 - 1/2) D2]
                                                                        Lu et al. 2022, arXiv:2206.00927, eq. 3.4
(3) sde-dpmsolver++: z' = (sigma'/sigma) e^-h z + alpha' [(1 - e^-2h) D0 + (1 - (1 - e^-2h)/2h) D1
                          + ((1 - e^-2h - 2h)/4h^2 - 1/2) D2] + sigma' sqrt(1 - e^-2h) noise      2211.01095, section 5
(4) sde-dpmsolver:   z' = (alpha'/alpha) z - 2 sigma' [(e^h - 1) D0 + ((e^h - 1)/h - 1) D1]
                          + sigma' sqrt(e^2h - 1) noise

Solver type `midpoint` has half of D0's weight for D1 in place of the weight above, in methods of second order.
"""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid
from ldm_jax.diffusion.samplers.linear import Call, Combination, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError

Algorithm: TypeAlias = Literal["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"]
SolverType: TypeAlias = Literal["midpoint", "heun"]
FEW_STEPS = 15
"""Below as many steps the last ones are of lower order, for stability (2211.01095, appendix)."""


class Transition(NamedTuple):
    """Weights of a step from one noise level to another (1) to (4)."""

    h: float
    z: float
    value: float
    first: float
    first_midpoint: float
    second: float
    noise: float


def transition(algorithm: Algorithm, begin: tuple[float, float], end: tuple[float, float]) -> Transition:
    """The weights (1) to (4) between two noise levels (alpha, sigma), where the second may be clean data."""
    (alpha, sigma), (alpha_next, sigma_next) = begin, end
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        h = np.log(np.float64(alpha_next) / sigma_next) - np.log(np.float64(alpha) / sigma)
        down, up, both = np.expm1(-h), np.expm1(h), np.expm1(-2.0 * h)
        match algorithm:
            case "dpmsolver++":
                terms = (sigma_next / sigma, -down, down / h + 1.0, -((down + h) / h**2 - 0.5), 0.0)
                size = alpha_next
            case "dpmsolver":
                terms = (alpha_next / alpha, -up, -(up / h - 1.0), -((up - h) / h**2 - 0.5), 0.0)
                size = sigma_next
            case "sde-dpmsolver++":
                second = (-both - 2.0 * h) / (2.0 * h) ** 2 - 0.5
                spread = sigma_next * np.sqrt(-both)
                terms = (sigma_next / sigma * np.exp(-h), -both, both / (2.0 * h) + 1.0, second, spread)
                size = alpha_next
            case "sde-dpmsolver":
                spread = sigma_next * np.sqrt(np.expm1(2.0 * h))
                terms = (alpha_next / alpha, -2.0 * up, -2.0 * (up / h - 1.0), np.nan, spread)
                size = sigma_next
    z, value, first, second, noise = terms
    return Transition(h, z, size * value, size * first, size * value / 2.0, size * second, noise)


def dpm_solver(
    grid: Grid,
    prediction: Prediction,
    *,
    order: int = 2,
    algorithm: Algorithm = "dpmsolver++",
    solver_type: SolverType = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    clipping: Clipping = NO_CLIPPING,
) -> Sampler:
    """The multistep solver (1) to (4) of order 1, 2 or 3, with one call for each step of the grid.

    Args:
        grid: times and noise levels; the step to clean data is of first order.
        prediction: what the denoiser predicts.
        order: order of the method; the first steps have the order that their history allows.
        algorithm: which of (1) to (4).
        solver_type: weight of D1 in steps of second order.
        lower_order_final: let the order fall towards the end of runs of fewer than 15 steps.
        euler_at_final: first order for the last step of any run.
        clipping: bounds of x0.

    Raises:
        UserError: a choice that the method does not have.
    """
    check_choices(grid, order, algorithm)
    read = Reader(grid, prediction, clipping, memory=max(order - 1, 0))
    calls = []
    for i in range(grid.num_steps):
        outputs = [estimate_of(read, algorithm, i), *read.memory]
        used = min(order, i + 1, _largest_order(grid, i, lower_order_final, euler_at_final))
        calls.append(Call(i, _step(read, i, used, algorithm, solver_type, outputs), outputs[: order - 1]))
    return read.sampler(calls)


def check_choices(grid: Grid, order: int, algorithm: Algorithm) -> None:
    """Refuse what DPM-Solver does not have.

    Raises:
        UserError: an order beyond 3 (2 for the stochastic epsilon solver), or epsilon solvers that end at clean data.
    """
    largest = 2 if algorithm == "sde-dpmsolver" else 3
    if not 1 <= order <= largest:
        raise UserError(f"order={order} of {algorithm} must lie between 1 and {largest}")
    if algorithm in ("dpmsolver", "sde-dpmsolver") and grid.sigma_next[-1] == 0.0:
        raise UserError(
            f"algorithm {algorithm} cannot step to clean data, where its steps in ln(alpha / sigma) are infinite; "
            f"use {algorithm}++, or end at the smallest noise level"
        )


def estimate_of(read: Reader, algorithm: Algorithm, i: int) -> Combination:
    """What the algorithm extrapolates: x0 or epsilon, as call i gives it."""
    return read.x0(i) if algorithm.endswith("++") else read.epsilon(i)


def _largest_order(grid: Grid, i: int, lower_order_final: bool, euler_at_final: bool) -> int:
    lower = lower_order_final and grid.num_steps < FEW_STEPS
    if i == grid.num_steps - 1 and (lower or euler_at_final or grid.sigma_next[-1] == 0.0):
        return 1
    return 2 if i == grid.num_steps - 2 and lower else 3


def _step(
    read: Reader, i: int, order: int, algorithm: Algorithm, solver_type: SolverType, m: list[Combination]
) -> Combination:
    grid = read.grid
    move = transition(algorithm, (grid.alpha[i], grid.sigma[i]), (grid.alpha_next[i], grid.sigma_next[i]))
    z = move.z * read.z + move.value * m[0] + move.noise * read.noise
    if order == 1 or move.h == 0.0:  # a grid may end twice at its smallest level
        return z
    log_snr = np.log(grid.alpha / grid.sigma)
    d0 = (m[0] - m[1]) * move.h / (log_snr[i] - log_snr[i - 1])
    if order == 2:
        return z + (move.first_midpoint if solver_type == "midpoint" else move.first) * d0
    r0, r1 = (log_snr[i] - log_snr[i - 1]) / move.h, (log_snr[i - 1] - log_snr[i - 2]) / move.h
    d1 = (m[1] - m[2]) / r1
    return z + move.first * (d0 + r0 / (r0 + r1) * (d0 - d1)) + move.second * (d0 - d1) / (r0 + r1)
