"""An adaptive solver of the probability flow: steps as large as the tolerance allows, for each sample its own.

(1) with u = ln(s): dy/du = y - x0(y, s)                                Song et al. 2020, arXiv:2011.13456, eq. 13
(2) Bogacki and Shampine's pair of orders 3 and 2: k2 at u + h/2, k3 at u + 3h/4, y' = y + h (2 k1 + 3 k2 + 4 k3) / 9,
    error = h (-5 k1 / 72 + k2 / 12 + k3 / 9 - k4 / 8), k4 the next step's k1       Bogacki and Shampine 1989
(3) accept where e = rms(error / (atol + rtol max(|y|, |y'|))) <= 1, then h <- h clip(0.9 e^(-1/3), 0.2, 5)

One step of the sampler is one `while_loop`; no sample waits for another's error, so a picture is the same in any batch.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.prediction import to_x0
from ldm_jax.diffusion.samplers.estimate import NO_CLIPPING, Clipping, check_clipping, clip
from ldm_jax.diffusion.samplers.grid import Grid, PathKind, finite_grid, require_signal
from ldm_jax.diffusion.samplers.sampler import Column, Latent, OneStepState, Predict, Sampler, columns, start_of
from ldm_jax.diffusion.schedule import per_sample
from ldm_jax.errors import UserError

MOST_TRIALS = 1000
TABLE_SIZE = 2048


class AdaptiveRows(NamedTuple):
    """The single step: from s to s_end adaptively, then to clean data."""

    t: Column
    u: Column
    u_end: Column
    rtol: Column
    atol: Column
    table_u: Float[Array, "*n points"]
    table_t: Float[Array, "*n points"]


class _Walk(NamedTuple):
    """Where each sample is, with its slope there and its next step."""

    y: Latent
    u: Float[Array, " b"]
    k: Latent
    h: Float[Array, " b"]
    trials: Int[Array, ""]


def adaptive(
    grid: Grid,
    prediction_type: PredictionType,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    clipping: Clipping = NO_CLIPPING,
) -> Sampler:
    """The adaptive solver (2), (3) between the first and the last call of the grid, then one step to clean data.

    Args:
        grid: only its two ends count.
        prediction_type: what the denoiser predicts.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        clipping: bounds of x0.

    Raises:
        UserError: a tolerance that is not positive, or epsilon predicted where there is no signal.
    """
    if rtol <= 0 or atol <= 0:
        raise UserError(f"rtol={rtol} and atol={atol} must be greater than 0")
    check_clipping(clipping)
    require_signal(prediction_type, grid.alpha)
    finite = finite_grid(grid, scaled=True)
    u = np.log(finite.s)
    table = np.linspace(u[-1], u[0], TABLE_SIZE)
    each = (np.array([value]) for value in (float(grid.t[0]), u[0], u[-1], rtol, atol))
    rows = AdaptiveRows(*columns(*each, table[None], grid.time_of(np.exp(table))[None]))
    (scale,) = columns(np.asarray(1.0 if grid.kind == "flow" else 1.0 / finite.alpha[0]))
    step, start = _make_step(prediction_type, clipping, grid.kind), start_of(grid, scaled=True)
    return Sampler(rows, OneStepState, step, stochastic=False, start=start, scale=scale)


@functools.cache
def _make_step(prediction_type: PredictionType, clipping: Clipping, kind: PathKind) -> Callable[..., OneStepState]:
    def step(predict: Predict, state: OneStepState, row: AdaptiveRows, noise: Latent) -> OneStepState:
        def x0_at(y: Latent, u: Float[Array, " b"]) -> Latent:
            s = jnp.exp(u)
            alpha, sigma = (1.0 - s, s) if kind == "flow" else (1.0 / jnp.hypot(s, 1.0), s / jnp.hypot(s, 1.0))
            z = y if kind == "flow" else per_sample(alpha, y) * y
            prediction = predict(z, jnp.interp(u, row.table_u, row.table_t))
            return clip(clipping, to_x0(prediction_type, prediction, z, alpha, sigma))

        y = _walk(lambda y, u: y - x0_at(y, u), state.z, row)
        return OneStepState(x0_at(y, jnp.full(len(y), row.u_end, y.dtype)))

    return step


def _walk(slope: Callable[[Latent, Float[Array, " b"]], Latent], y: Latent, row: AdaptiveRows) -> Latent:
    """Integrate (1) from u to u_end."""
    u = jnp.full(len(y), row.u, y.dtype)

    def unfinished(walk: _Walk) -> Bool[Array, ""]:
        return jnp.any(walk.u > row.u_end) & (walk.trials < MOST_TRIALS)

    def trial(walk: _Walk) -> _Walk:
        last = walk.u + walk.h <= row.u_end
        h = jnp.where(last, row.u_end - walk.u, walk.h)
        y, k, e = _bogacki_shampine(slope, walk, h, row)
        accepted = (e <= 1.0) & (walk.u > row.u_end)
        taken = accepted.reshape(-1, *(1,) * (y.ndim - 1))
        y, k = jnp.where(taken, y, walk.y), jnp.where(taken, k, walk.k)
        u = jnp.where(accepted, jnp.where(last, row.u_end, walk.u + h), walk.u)
        return _Walk(y, u, k, h * jnp.clip(0.9 * jnp.maximum(e, 1e-8) ** (-1 / 3), 0.2, 5.0), walk.trials + 1)

    start = _Walk(y, u, slope(y, u), jnp.full(len(y), (row.u_end - row.u) / 20.0, y.dtype), jnp.int32(0))
    return jax.lax.while_loop(unfinished, trial, start).y


def _bogacki_shampine(
    slope: Callable[[Latent, Float[Array, " b"]], Latent], walk: _Walk, h: Float[Array, " b"], row: AdaptiveRows
) -> tuple[Latent, Latent, Float[Array, " b"]]:
    """The end of a step (2), the slope there, and the error in units of the tolerance (3)."""
    y, step = walk.y, per_sample(h, walk.y)
    k2 = slope(y + step * walk.k / 2, walk.u + h / 2)
    k3 = slope(y + step * k2 * 3 / 4, walk.u + h * 3 / 4)
    end = y + step * (2 * walk.k + 3 * k2 + 4 * k3) / 9
    k4 = slope(end, walk.u + h)
    error = step * (-5 * walk.k / 72 + k2 / 12 + k3 / 9 - k4 / 8)
    allowed = row.atol + row.rtol * jnp.maximum(jnp.abs(y), jnp.abs(end))
    return end, k4, jnp.sqrt(jnp.mean(jnp.square(error / allowed), axis=tuple(range(1, y.ndim))))
