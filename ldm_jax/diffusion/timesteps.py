"""Which timesteps are trained: all alike, or those more often whose losses vary most, weighted so that nothing changes.

(1) E_t[L_t] over uniform t = E_{t ~ p}[L_t / (T p_t)], with the least variance where p_t ~ sqrt(E[L_t^2])
                                              Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 18
(2) E[L_t^2] is the mean of the last 10 times that t was drawn; until every t was drawn so often, p is uniform, and
    afterwards a share of 0.001 of it is             the same, section 3.3 and its code

Here a time is a step of training: samples of a batch that share a timestep count once, with their mean square, so that
the history is the same however a batch is split over devices and micro-batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_jax.config import DiffusionConfig

HISTORY = 10
"""Entries for each timestep (2)."""
_UNIFORM = 0.001


class Visits(NamedTuple):
    """What a batch has found of each timestep: sums, or means of sums over micro-batches."""

    squares: Float[Array, " T"]
    """Of squared losses."""
    counts: Float[Array, " T"]
    """Of samples."""


class LossHistory(NamedTuple):
    """The squared losses (2) of each timestep."""

    squares: Float[Array, "T h"]
    drawn: Int[Array, " T"]
    """How often each timestep was drawn; the next entry goes to this number modulo h."""

    @classmethod
    def empty(cls, config: DiffusionConfig) -> "LossHistory":
        """Before the first step."""
        timesteps = config.schedule.num_train_timesteps
        return cls(jnp.zeros((timesteps, HISTORY)), jnp.zeros((timesteps,), jnp.int32))

    def probabilities(self) -> Float[Array, " T"]:
        """How probable each timestep is to be drawn (1), (2)."""
        count = len(self.drawn)
        spread = jnp.sqrt(jnp.mean(self.squares, axis=1))
        total = jnp.sum(spread)
        usable = jnp.all(self.drawn >= HISTORY) & (total > 0)
        p = (1.0 - _UNIFORM) * spread / jnp.where(usable, total, 1.0) + _UNIFORM / count
        return jnp.where(usable, p, 1.0 / count)

    def updated(self, visits: Visits) -> "LossHistory":
        """With what a batch has found."""
        visited = visits.counts > 0
        square = visits.squares / jnp.where(visited, visits.counts, 1.0)
        here = jnp.arange(HISTORY) == (self.drawn % HISTORY)[:, None]
        squares = jnp.where(here & visited[:, None], square[:, None], self.squares)
        return LossHistory(squares, self.drawn + visited)


def draw_timesteps(p: Float[Array, " T"], uniform: Float[Array, " b"]) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """A timestep for each sample by its own uniform number in [0, 1), and the weight of its loss (1)."""
    t = jnp.searchsorted(jnp.cumsum(p), uniform, side="right").clip(0, len(p) - 1).astype(jnp.int32)
    return t, 1.0 / (len(p) * p[t])


def visits_of(t: Int[Array, " b"], losses: Float[Array, " b"], num_train_timesteps: int) -> Visits:
    """What a batch has found; `losses` are without the weights of (1)."""
    squares, ones = jnp.square(jax.lax.stop_gradient(losses)), jnp.ones(len(t))
    return Visits(*(jax.ops.segment_sum(x, t, num_train_timesteps) for x in (squares, ones)))
