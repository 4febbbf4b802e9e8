"""DPM-Solver and DPM-Solver++, singlestep: blocks of calls that each start anew, without history.

A block of order k makes k calls: its first leads to the second noise level by first order, the second to the third by
second order from the block's start, and so on. With m0, m1, m2 the estimates at the block's levels, newest first,
r0 and r1 the shares of h = lambda' - lambda at which m0 and m1 lie:

(1) second order: D0 = m1, D1 = (m0 - m1) / r0                          Lu et al. 2022, arXiv:2206.00927, algorithm 1
(2) third order:  D0 = m2, D1 and D2 the differences through m2, m1, m0, or for solver type `midpoint` D1 alone,
    (m0 - m2) / r0                                                      the same, algorithm 2
    and the weights of dpm_solver.py, (1) to (3)
"""

import numpy as np

from ldm_jax.diffusion.samplers.dpm_solver import (
    Algorithm,
    SolverType,
    Transition,
    check_choices,
    estimate_of,
    transition,
)
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid
from ldm_jax.diffusion.samplers.linear import Call, Combination, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError


def block_orders(num_steps: int, order: int, *, lower_order_final: bool, ends_clean: bool) -> list[int]:
    """Order of each call: blocks 1 .. order, and a tail of lower order where the blocks do not fit or must not end."""
    block = list(range(1, order + 1))
    if not lower_order_final:
        orders = block * (num_steps // order)
    elif order == 1:
        orders = [1] * num_steps
    else:
        whole, rest = divmod(num_steps - 1, order)
        orders = block * whole + [*block[:rest], 1]
        if order == 3 and num_steps % 3 == 2:
            orders[-1] = 2
    return [*orders[:-1], 1] if ends_clean else orders


def dpm_solver_singlestep(
    grid: Grid,
    prediction: Prediction,
    *,
    order: int = 2,
    algorithm: Algorithm = "dpmsolver++",
    solver_type: SolverType = "midpoint",
    lower_order_final: bool = True,
    clipping: Clipping = NO_CLIPPING,
) -> Sampler:
    """The singlestep solver (1), (2) of order 1, 2 or 3, with one call for each step of the grid.

    Args:
        grid: times and noise levels; the step to clean data is of first order.
        prediction: what the denoiser predicts.
        order: calls in a block.
        algorithm: as in `dpm_solver`, without sde-dpmsolver.
        solver_type: which weights the differences have.
        lower_order_final: end with blocks of lower order; the only way where the blocks do not fit into the grid, or
            where it ends at clean data.
        clipping: bounds of x0.

    Raises:
        UserError: a choice that the method does not have.
    """
    check_choices(grid, order, algorithm)
    if algorithm == "sde-dpmsolver":
        raise UserError("the singlestep solver has no algorithm sde-dpmsolver; use sde-dpmsolver++ or dpmsolver")
    clean = bool(grid.sigma_next[-1] == 0.0)
    lower = lower_order_final or clean or grid.num_steps % order != 0
    orders = block_orders(grid.num_steps, order, lower_order_final=lower, ends_clean=clean)
    read = Reader(grid, prediction, clipping, memory=order)
    base, *past = read.memory
    calls = []
    for i, used in enumerate(orders):
        outputs = [estimate_of(read, algorithm, i), *past]
        start = read.z if used == 1 else base
        z = _step(read, i, used, algorithm, solver_type, start, outputs)
        calls.append(Call(i, z, [start, *outputs[: order - 1]]))
    return read.sampler(calls)


def _step(
    read: Reader,
    i: int,
    order: int,
    algorithm: Algorithm,
    solver_type: SolverType,
    start: Combination,
    m: list[Combination],
) -> Combination:
    grid, first = read.grid, i - order + 1
    begin, end = (grid.alpha[first], grid.sigma[first]), (grid.alpha_next[i], grid.sigma_next[i])
    move = transition(algorithm, begin, end)
    z = move.z * start + move.value * m[order - 1] + move.noise * read.noise
    if order == 1:
        return z
    log_snr = np.log(grid.alpha / grid.sigma)
    r0 = (log_snr[i] - log_snr[first]) / move.h
    if order == 2:
        return z + (move.first_midpoint if solver_type == "midpoint" else move.first) * (m[0] - m[1]) / r0
    return z + _third(move, solver_type, r0, (log_snr[i - 1] - log_snr[first]) / move.h, m)


def _third(move: Transition, solver_type: SolverType, r0: float, r1: float, m: list[Combination]) -> Combination:
    far, near = (m[0] - m[2]) / r0, (m[1] - m[2]) / r1
    if solver_type == "midpoint":
        return move.first * far
    return move.first * (r0 * near - r1 * far) / (r0 - r1) + move.second * 2.0 * (far - near) / (r0 - r1)
