"""UniPC: a multistep predictor, and a corrector that uses the same call once more.

With lambda = ln(alpha / sigma), h = lambda' - lambda, hh = -h for x0 and h for epsilon, m_k the estimate k steps back
at r_k = (lambda_k - lambda) / h, and D_k = (m_k - m_0) / r_k:

(1) base: z' = (sigma'/sigma) z - alpha' (e^hh - 1) m_0 for x0, (alpha'/alpha) z - sigma' (e^hh - 1) m_0 for epsilon
(2) predictor: z' - size B(h) sum_k rho_k D_k, with size = alpha' or sigma' and B = hh (bh1) or e^hh - 1 (bh2)
(3) corrector: the same with one more difference, m' - m_0, once the denoiser has been called at z'
(4) rho solves sum_k r_k^(j-1) rho_k = j! phi_(j+1)(hh) / B(h); for one difference rho = 1/2
    Zhao et al. 2023, arXiv:2302.04867, theorem 3.1 and algorithms 1, 2, 5 to 8
"""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping
from ldm_jax.diffusion.samplers.grid import Grid, Host
from ldm_jax.diffusion.samplers.linear import Call, Combination, Prediction, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.errors import UserError

Variant: TypeAlias = Literal["bh1", "bh2"]


class _Step(NamedTuple):
    """A step of the grid in the terms of (1), (2)."""

    z: float
    size: float
    hh: float
    b: float
    ratios: Host

    def base(self, z: Combination, m: Combination) -> Combination:
        """The first-order step (1) from z."""
        return self.z * z - self.size * np.expm1(self.hh) * m


def unipc(
    grid: Grid,
    prediction: Prediction,
    *,
    order: int = 2,
    variant: Variant = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: tuple[int, ...] = (),
    clipping: Clipping = NO_CLIPPING,
) -> Sampler:
    """UniPC of any order, with one call for each step of the grid.

    Args:
        grid: times and noise levels.
        prediction: what the denoiser predicts.
        order: order of the predictor; the corrector has one more. The first steps have the order that their history
            allows.
        variant: B of (2).
        predict_x0: whether x0 is extrapolated, or epsilon.
        lower_order_final: let the order fall towards the end; the only way where the grid ends at clean data.
        disable_corrector: steps whose result is not corrected.
        clipping: bounds of x0.

    Raises:
        UserError: a choice that the method does not have.
    """
    _check(grid, order, lower_order_final, predict_x0)
    read = Reader(grid, prediction, clipping, memory=order + 1)
    last, *past = read.memory
    calls, orders = [], _orders(grid.num_steps, order, lower_order_final)
    for i in range(grid.num_steps):
        m = read.x0(i) if predict_x0 else read.epsilon(i)
        z = read.z
        if i > 0 and i - 1 not in disable_corrector:
            z = _correct(_make_step(read.grid, i - 1, orders[i - 1], predict_x0, variant), last, past, m)
        outputs = [m, *past]
        step = _make_step(read.grid, i, orders[i], predict_x0, variant)
        calls.append(Call(i, _predict(step, z, outputs), [z, *outputs[:order]]))
    return read.sampler(calls)


def _check(grid: Grid, order: int, lower_order_final: bool, predict_x0: bool) -> None:
    if order < 1:
        raise UserError(f"order={order} of unipc must be at least 1")
    clean = grid.sigma_next[-1] == 0.0
    if clean and (not predict_x0 or (order > 1 and not lower_order_final)):
        raise UserError(
            f"unipc with predict_x0={predict_x0} and lower_order_final={lower_order_final} cannot step to clean data, "
            "where its last step in ln(alpha / sigma) is infinite; use True for both, or end at the smallest level"
        )


def _orders(num_steps: int, order: int, lower_order_final: bool) -> list[int]:
    return [min(order, i + 1, num_steps - i if lower_order_final else order) for i in range(num_steps)]


def _make_step(grid: Grid, i: int, order: int, predict_x0: bool, variant: Variant) -> _Step:
    with np.errstate(divide="ignore"):
        log_snr = np.log(grid.alpha / grid.sigma)
        h = np.log(np.float64(grid.alpha_next[i]) / grid.sigma_next[i]) - log_snr[i]
    hh = -h if predict_x0 else h
    size = grid.alpha_next[i] if predict_x0 else grid.sigma_next[i]
    ratio = grid.sigma_next[i] / grid.sigma[i] if predict_x0 else grid.alpha_next[i] / grid.alpha[i]
    past = (log_snr[i - order + 1 : i][::-1] - log_snr[i]) / h
    return _Step(ratio, size, hh, hh if variant == "bh1" else np.expm1(hh), past)


def _predict(step: _Step, z: Combination, m: list[Combination]) -> Combination:
    """The predictor (2) from z with estimates m, newest first."""
    count = len(step.ratios)
    if count == 0:
        return step.base(z, m[0])
    return _refined(step, z, m[0], m[1 : count + 1], step.ratios)


def _correct(step: _Step, z: Combination, m: list[Combination], new: Combination) -> Combination:
    """The corrector (3) of the step from z, with the estimate at its end."""
    count = len(step.ratios)
    return _refined(step, z, m[0], [*m[1 : count + 1], new], np.append(step.ratios, 1.0))


def _refined(step: _Step, z: Combination, m: Combination, others: list[Combination], ratios: Host) -> Combination:
    differences = [(other - m) / ratio for other, ratio in zip(others, ratios, strict=True)]
    weighted = sum(rho * difference for rho, difference in zip(_rho(step, ratios), differences, strict=True))
    return step.base(z, m) - step.size * step.b * weighted


def _rho(step: _Step, ratios: Host) -> Host:
    """Weights (4), with phi_(j+1) by its recursion."""
    count, hh = len(ratios), step.hh
    if count == 1:
        return np.array([0.5])
    phi, factorial, right = np.expm1(hh) / hh - 1.0, 1.0, []
    for j in range(1, count + 1):
        right.append(phi * factorial / step.b)
        factorial *= j + 1
        phi = phi / hh - 1.0 / factorial
    return np.linalg.solve(np.stack([ratios**j for j in range(count)]), np.array(right))
