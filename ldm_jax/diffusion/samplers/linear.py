"""Samplers whose every step is a linear combination: one program for all of them, told apart by their numbers.

With p = denoise(c z, t), the denoiser's output at the step's start, and m_1 .. m_k what the sampler remembers, latents
or outputs of its own choice:

(1) z <- z + churn noise                                   before the denoiser is called
(2) x0 = clip(a z + b p)
(3) (z, m_1, .., m_k) <- W (z, m_1, .., m_k, p, x0, noise)

A solver is then nothing but a rule for W, a matrix for each call, which it writes as formulas of vectors: `Reader` has
the unit vectors z, memory, noise, and x0 and epsilon as combinations of them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.samplers.estimate import (
    Clipping,
    Pair,
    check_clipping,
    clip,
    epsilon_weights,
    x0_weights,
)
from ldm_jax.diffusion.samplers.grid import Grid, Host, finite_grid, require_signal
from ldm_jax.diffusion.samplers.sampler import Column, Latent, Predict, Sampler, columns, start_of

Combination: TypeAlias = Float64[np.ndarray, " terms"]
"""Weights of everything a step has seen: z, memory, p, x0, noise."""


class Preconditioned(NamedTuple):
    """The denoiser F of Karras et al. 2022 (arXiv:2206.00364, eq. 7): x0 = c_skip y + c_out F(c_in y, ln(s) / 4)."""

    sigma_data: float = 0.5
    negative: bool = False
    """Whether F has the other sign, as v has."""


Prediction: TypeAlias = PredictionType | Preconditioned


class LinearRows(NamedTuple):
    """Numbers of each call (1), (2), (3)."""

    t: Column
    input_scale: Column
    churn: Column
    x0_z: Column
    x0_p: Column
    weights: Float[Array, "*n out terms"]


class LinearState(NamedTuple):
    """The latent in the sampler's coordinates, and what it remembers."""

    z: Latent
    memory: tuple[Latent, ...]


class Call(NamedTuple):
    """One row: what becomes of z and of the memory after a call of the grid."""

    number: int
    z: Combination
    memory: Sequence[Combination] = ()
    churn: float = 0.0


class Reader:
    """The unit vectors of (3), and what each call of a grid says, as combinations of them."""

    def __init__(
        self, grid: Grid, prediction: Prediction, clipping: Clipping, *, memory: int = 0, scaled: bool = False
    ) -> None:
        """Read predictions at the start of each step.

        Args:
            grid: one row for each call of the denoiser.
            prediction: what the denoiser's output means.
            clipping: bounds of x0.
            memory: k.
            scaled: whether the sampler moves y instead of z_t (grid.py, (1)).
        """
        check_clipping(clipping)
        if not isinstance(prediction, Preconditioned):
            require_signal(prediction, grid.alpha)
        self.grid = grid = finite_grid(grid, scaled=scaled)
        self.clipping, self._scaled = clipping, scaled
        self._is_flow = prediction == "flow"
        self.z, *self.memory, self.prediction, self._x0, self.noise = np.eye(memory + 4)
        self._scale = grid.alpha if scaled and grid.kind == "preserving" else np.ones_like(grid.alpha)
        self.input_scale, self._x0_pair, self._epsilon_pair = _readout(prediction, grid, self._scale)

    def x0(self, i: int) -> Combination:
        """The estimate of the clean latent by call i."""
        if self.clipping.kind == "none":
            return self._x0_pair[0][i] * self.z + self._x0_pair[1][i] * self.prediction
        return self._x0

    def epsilon(self, i: int) -> Combination:
        """The estimate of the noise by call i; where x0 is clipped, epsilon follows it."""
        if self.clipping.kind == "none":
            return self._epsilon_pair[0][i] * self.z + self._epsilon_pair[1][i] * self.prediction
        return (self._scale[i] * self.z - self.grid.alpha[i] * self._x0) / self.grid.sigma[i]

    def slope(self, i: int) -> Combination:
        """dy/ds = (y - x0) / s at call i (grid.py, (3))."""
        if self.clipping.kind == "none" and self.grid.kind == "preserving":
            return self.epsilon(i)  # the same, without the loss of digits
        if self.clipping.kind == "none" and self.grid.kind == "flow" and self._is_flow:
            return self.prediction
        return (self.z - self.x0(i)) / self.grid.s[i]

    def sampler(self, calls: Sequence[Call], first: Grid | None = None) -> Sampler:
        """The sampler made of these calls, which starts from standard normal noise of the grid's first level.

        `first` is a grid with the level at which it starts from other latents, where that is not the first call's.
        """
        index = np.array([call.number for call in calls])
        weights = np.stack([np.stack([call.z, *call.memory]) for call in calls])
        churn = np.array([call.churn for call in calls])
        clipped = self.clipping.kind != "none"
        x0_z, x0_p = (np.where(clipped, pair[index], 0.0) for pair in self._x0_pair)
        rows = LinearRows(*columns(self.grid.t[index], self.input_scale[index], churn, x0_z, x0_p, weights))
        stochastic = bool(churn.any() or weights[:, 0, -1].any())
        (scale,) = columns(np.asarray(self._start()))
        start = start_of(self.grid if first is None else first, scaled=self._scaled)
        return Sampler(rows, _make_init(len(self.memory)), _make_step(self.clipping), stochastic, start, scale)

    def _start(self) -> float:
        if self.grid.kind == "edm":
            return float(np.hypot(self.grid.s[0], 1.0))
        return float(1.0 / self._scale[0])


def _readout(prediction: Prediction, grid: Grid, scale: Host) -> tuple[Host, Pair, Pair]:
    """Input scale, and weights of x0 and epsilon, for a latent that is z_t / scale."""
    if isinstance(prediction, Preconditioned):
        s, data = grid.s, prediction.sigma_data
        norm = np.hypot(s, data)
        x0 = np.square(data / norm), s * data / norm * (-1.0 if prediction.negative else 1.0)
        return 1.0 / norm, x0, ((1.0 - x0[0]) / s, -x0[1] / s)
    x0 = x0_weights(prediction, grid.alpha, grid.sigma)
    epsilon = epsilon_weights(prediction, grid.alpha, grid.sigma)
    return scale, (scale * x0[0], x0[1]), (scale * epsilon[0], epsilon[1])


@functools.cache
def _make_init(memory: int) -> Callable[[Latent], LinearState]:
    return lambda z: LinearState(z, (jnp.zeros_like(z),) * memory)


@functools.cache
def _make_step(clipping: Clipping) -> Callable[..., LinearState]:
    def step(predict: Predict, state: LinearState, row: LinearRows, noise: Latent) -> LinearState:
        z = state.z + row.churn * noise  # (1)
        prediction = predict(row.input_scale * z, row.t)
        x0 = clip(clipping, row.x0_z * z + row.x0_p * prediction)  # (2)
        seen = jnp.stack([z, *state.memory, prediction, x0, noise])
        z, *memory = (jnp.sum(w.reshape(-1, *(1,) * z.ndim) * seen, axis=0) for w in row.weights)  # (3)
        return LinearState(z, tuple(memory))

    return step
