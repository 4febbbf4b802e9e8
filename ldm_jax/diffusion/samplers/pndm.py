"""PNDM, and its variant PLMS that LDM and Stable Diffusion sample with.

A transfer moves z from one noise level to another along a given epsilon, as a step of DDIM does:

(1) z' = (alpha' / alpha) z + (sigma' - alpha' sigma / alpha) epsilon      Liu et al. 2022, arXiv:2202.09778, eq. 11
(2) Runge-Kutta start, for the first three steps of PNDM: four transfers from the step's start, the last of them along
    (e1 + 2 e2 + 2 e3 + e4) / 6                                            the same, eq. 13
(3) multistep, with e0 now and e1, e2, e3 at the steps before: epsilon = (55 e0 - 59 e1 + 37 e2 - 9 e3) / 24
                                                                           the same, eq. 12
(4) PLMS starts with lower orders instead: (e0 + e at the step's end) / 2, (3 e0 - e1) / 2, (23 e0 - 16 e1 + 5 e2) / 12
                                                                           Rombach et al. 2022, LDM's PLMS sampler

PNDM with n steps makes n + 9 calls, PLMS n + 1.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, epsilon_weights
from ldm_jax.diffusion.samplers.grid import Grid, schedule_grid
from ldm_jax.diffusion.samplers.linear import Call, Combination, Reader
from ldm_jax.diffusion.samplers.sampler import Sampler
from ldm_jax.diffusion.samplers.times import Times, levels
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import UserError

Combine = Literal["epsilon", "prediction"]
RUNGE_KUTTA_STEPS = 3
ADAMS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms_calls(grid: Grid) -> Grid:
    """From one row a step to one a call: the second call, at the end of the first step, repeats that step."""
    if grid.num_steps == 1:
        return grid
    index = np.concatenate([[0, 0], np.arange(1, grid.num_steps)])
    t = np.concatenate([grid.t[:1], grid.t[1:2], grid.t[1:]])
    return grid.take(index)._replace(t=t)


def pndm_calls(schedule: NoiseSchedule, times: Times) -> Grid:
    """From one row a step to one a call: four for each of the first three steps, two of them half-way.

    Raises:
        UserError: there are fewer than four steps.
    """
    if len(times.t) <= RUNGE_KUTTA_STEPS:
        raise UserError(f"sampler=pndm needs at least 4 steps, not num_sample_steps={len(times.t)}; use plms")
    start, end = times.t[:RUNGE_KUTTA_STEPS], times.t_next[:RUNGE_KUTTA_STEPS]
    half = (start + end) // 2
    t = np.concatenate([np.stack([start, half, half, end], axis=1).ravel(), times.t[RUNGE_KUTTA_STEPS:]])
    to = np.concatenate([np.stack([half, half, end, end], axis=1).ravel(), times.t_next[RUNGE_KUTTA_STEPS:]])
    origin = np.concatenate([np.repeat(start, 4), times.t[RUNGE_KUTTA_STEPS:]])
    grid = schedule_grid(schedule, Times(t, to))
    alpha, sigma = levels(schedule, origin)
    return grid._replace(alpha=alpha, sigma=sigma)


class _Transfers:
    """Outputs of the calls and the transfers (1) along their combinations."""

    def __init__(
        self, calls: Grid, prediction_type: PredictionType, combine: Combine, own: tuple[np.ndarray, np.ndarray] | None
    ) -> None:
        self.read = Reader(calls, prediction_type, NO_CLIPPING, memory=5)
        self.base, self.sum, *self.past = self.read.memory
        self._late = combine == "prediction"
        grid = self.read.grid
        self._weights = epsilon_weights(prediction_type, grid.alpha, grid.sigma)
        self._own = epsilon_weights(prediction_type, *own) if own else self._weights

    def output(self, i: int) -> Combination:
        """What is combined: the epsilon of call i, or the denoiser's output as it is."""
        if self._late:
            return self.read.prediction
        return self._own[0][i] * self.read.z + self._own[1][i] * self.read.prediction

    def move(self, i: int, z: Combination, output: Combination) -> Combination:
        """Transfer z along an output (1)."""
        grid = self.read.grid
        ratio = grid.alpha_next[i] / grid.alpha[i]
        if self._late:
            output = self._weights[0][i] * z + self._weights[1][i] * output
        return ratio * z + (grid.sigma_next[i] - ratio * grid.sigma[i]) * output

    def multistep(self, i: int, order: int) -> Call:
        """A step (3), (4) from here."""
        outputs = [self.output(i), *self.past]
        combined = sum((w * e for w, e in zip(ADAMS[order - 1], outputs, strict=False)), 0 * self.read.z)
        return Call(i, self.move(i, self.read.z, combined), self._remember(self.base, self.sum, outputs))

    @staticmethod
    def _remember(base: Combination, total: Combination, outputs: Sequence[Combination]) -> list[Combination]:
        return [base, total, *outputs[:3]]

    def runge_kutta(self, i: int, stage: int) -> Call:
        """One of the four transfers of (2)."""
        e, z = self.output(i), self.read.z
        base = z if stage == 0 else self.base
        total = e / 6 if stage == 0 else self.sum + e / (6 if stage == 3 else 3)
        past = [e, *self.past[:2]] if stage == 0 else self.past
        return Call(i, self.move(i, base, total if stage == 3 else e), self._remember(base, total, past))

    def second_of_plms(self, i: int) -> Call:
        """The first step again, along the average of both ends; the output is not remembered."""
        average = (self.output(i) + self.past[0]) / 2
        return Call(i, self.move(i, self.base, average), self._remember(self.base, self.sum, self.past))


def plms(calls: Grid, prediction_type: PredictionType, *, combine: Combine = "epsilon") -> Sampler:
    """PLMS (3), (4).

    Args:
        calls: one row a call, as `plms_calls` makes them.
        prediction_type: what the denoiser predicts.
        combine: whether the epsilons of the calls are combined, or the denoiser's outputs, which are then read at the
            step's start; the same where epsilon is predicted.

    Raises:
        UserError: epsilon is predicted where there is no signal.
    """
    own = _own_levels(calls, [1]) if calls.num_steps > 1 else None
    steps = _Transfers(calls, prediction_type, combine, own)
    first = steps.multistep(0, 1)
    rows = [first._replace(memory=[steps.read.z, *first.memory[1:]])]
    if calls.num_steps > 1:
        rows.append(steps.second_of_plms(1))
    rows += [steps.multistep(i, min(i, 4)) for i in range(2, calls.num_steps)]
    return steps.read.sampler(rows)


def pndm(calls: Grid, prediction_type: PredictionType, *, combine: Combine = "epsilon") -> Sampler:
    """PNDM (2), (3); arguments as of `plms`, rows as `pndm_calls` makes them."""
    started = 4 * RUNGE_KUTTA_STEPS
    own = _own_levels(calls, [i for i in range(started) if i % 4])
    steps = _Transfers(calls, prediction_type, combine, own)
    rows = [steps.runge_kutta(i, i % 4) for i in range(started)]
    rows += [steps.multistep(i, 4) for i in range(started, calls.num_steps)]
    return steps.read.sampler(rows)


def _own_levels(calls: Grid, repeated: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Noise level at which each call is made: where the one before led, for calls that repeat a step."""
    alpha, sigma = calls.alpha.copy(), calls.sigma.copy()
    for i in repeated:
        alpha[i], sigma[i] = calls.alpha_next[i - 1], calls.sigma_next[i - 1]
    return alpha, sigma
