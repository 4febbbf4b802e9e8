"""How likely a model finds data: the variational bound with its terms, and the probability flow's exact likelihood.

Both are in bits per dimension, lower is better, of the continuous values of z_0; both are functions of `denoise_fn`.

(1) -log p(z_0) <= KL(q(z_T | z_0) || N(0, 1)) + sum_{t > 0} KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t))
    - log p(z_0 | z_first)                                           Ho et al. 2020, arXiv:2006.11239, eq. 5
(2) p(z_{t-1} | z_t) is the posterior with the estimate of z_0 in its place. Its variance is that of the posterior, v
    (`small`), or v (sigma_t / sigma_{t-1})^2, which is beta_t (`large`), or between them where the denoiser has learned
    it; the KL is that of `learned_variance.py`. Where the signal is strong only the large one is near the spread that
    data have; DDPM's are these two.                                 the same, section 3.2 and eq. 8
(3) p(z_0 | z_first) = N(estimate, (sigma / alpha)^2) at the first timestep   Kingma et al. 2021, arXiv:2107.00630, 3.3
(4) With y = z / alpha and s = sigma / alpha, the probability flow is dy / ds = epsilon(z, t), and along it
    log p(y_0) = log p(y_S) + int div_y epsilon ds, with z_S of unit spread where the model begins to draw
                                                                      Song et al. 2021, arXiv:2011.13456, eq. 13 and 39
(5) div_y epsilon = alpha E[u . J u], with J the Jacobian of epsilon and u random signs     Hutchinson 1990; the basis
    vectors in the place of u give it exactly
"""

import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ldm_jax import rng
from ldm_jax.config import PredictionType
from ldm_jax.diffusion.learned_variance import log_growth, split_output, step_kl
from ldm_jax.diffusion.prediction import DenoiseFn, to_epsilon, to_x0
from ldm_jax.diffusion.process import add_noise
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import UserError

Variance: TypeAlias = Literal["small", "large", "learned"]
_FlowState: TypeAlias = tuple[Array, Array, Array, Array]
"""y, the integral of the divergence, the timestep before, and its s."""

_LEAST_SIGNAL = 1e-4
"""alpha below which the flow does not start: y = z / alpha would lose its digits."""


class VariationalBound(NamedTuple):
    """The terms of (1) in bits per dimension; their sum is the bound."""

    prior: Float[Array, " b"]
    kl: Float[Array, "t b"]
    """One row for each timestep from 1 to T - 1."""
    decoder: Float[Array, " b"]

    @property
    def total(self) -> Float[Array, " b"]:
        """The bound of each sample."""
        return self.prior + self.kl.sum(0) + self.decoder


def variational_bound(
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    denoise_fn: DenoiseFn,
    z0: Float[Array, "b *spatial c"],
    keys: Key[Array, " b"],
    variance: Variance = "large",
) -> VariationalBound:
    """The bound (1) of each sample, one draw of z_t for every timestep: T calls of the denoiser.

    Args:
        schedule: of training.
        prediction_type: what the denoiser predicts.
        denoise_fn: the denoiser with its conditions.
        z0: clean latents.
        keys: one for each sample; a sample's bound does not depend on what else is in the batch.
        variance: of the model's steps (2).

    Raises:
        UserError: the variance is to be the learned one, and the denoiser has none.
    """
    dims = math.prod(z0.shape[1:])
    bits = 1 / (math.log(2) * dims)

    def error_at(t: Int[Array, ""]) -> tuple[Float[Array, "b *spatial c"], Float[Array, "b *spatial v"]]:
        """The error of one estimate of z_0, and what was learned of the variance."""
        times = jnp.full(len(z0), t)
        drawn = jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)
        zt = add_noise(schedule, z0, rng.normal(drawn, z0.shape[1:]), times)
        prediction, v = split_output(denoise_fn(zt, times), zt)
        return z0 - to_x0(prediction_type, prediction, zt, schedule.alpha[t], schedule.sigma[t]), v

    def step(_: None, t: Int[Array, ""]) -> tuple[None, Float[Array, " b"]]:
        error, v = error_at(t)
        fixed = jnp.full_like(error, 1.0 if variance == "large" else -1.0)
        v = _learned(v, z0) if variance == "learned" else fixed
        growth = log_growth(v, schedule.sigma[t], schedule.sigma[t - 1])
        return None, bits * _sum(step_kl(schedule, t, error, growth))  # (2)

    _, kl = jax.lax.scan(step, None, jnp.arange(1, schedule.num_train_timesteps))
    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    prior = 0.5 * _sum(sigma**2 + (alpha * z0) ** 2 - 1 - 2 * jnp.log(sigma))
    spread = schedule.sigma[0] / schedule.alpha[0]  # (3)
    first = _sum(jnp.square(error_at(jnp.asarray(0))[0])) / (2 * spread**2)
    constant = dims * (jnp.log(spread) + 0.5 * math.log(2 * math.pi))
    return VariationalBound(bits * prior, kl, bits * (first + constant))


def flow_likelihood(
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    denoise_fn: DenoiseFn,
    z0: Float[Array, "b *spatial c"],
    keys: Key[Array, " b"],
    *,
    num_steps: int | None = None,
    num_probes: int | None = 1,
) -> Float[Array, " b"]:
    """-log p(z_0) of each sample along the probability flow (4), by Heun's method over training timesteps.

    Args:
        schedule: of training.
        prediction_type: what the denoiser predicts.
        denoise_fn: the denoiser with its conditions; a sample's prediction must not depend on the others.
        z0: clean latents.
        keys: one for each sample, of the random signs.
        num_steps: timesteps visited, spread evenly; None visits all.
        num_probes: random signs for the divergence (5); None takes it exactly, a pass for each dimension.

    Returns:
        Bits per dimension; without bias in the number of probes, up to the error of the steps.

    Raises:
        UserError: fewer than two steps, or none of the timesteps has signal.
    """
    times = _times(schedule, num_steps)
    probes = _probes(z0, keys, num_probes)
    last = times[-1]

    def slope(y: Float[Array, "b *spatial c"], t: Int[Array, ""]) -> tuple[Array, Float[Array, " b"]]:
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]

        def epsilon(z: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial c"]:
            prediction, _ = split_output(denoise_fn(z, jnp.full(len(z), t)), z)
            return to_epsilon(prediction_type, prediction, z, alpha, sigma)

        # backwards, as u . J u = u . J^T u, for attention kernels have no forward derivative
        here, pull_back = jax.vjp(epsilon, alpha * y)

        def along(total: Float[Array, " b"], u: Array) -> tuple[Float[Array, " b"], None]:
            return total + _sum(u * pull_back(u)[0]), None

        total, _ = jax.lax.scan(along, jnp.zeros(len(z0)), probes)
        return here, alpha * total / (1 if num_probes is None else num_probes)  # (5)

    def step(state: _FlowState, t: Int[Array, ""]) -> tuple[_FlowState, None]:
        y, integral, before, s = state
        s_next = schedule.sigma[t] / schedule.alpha[t]
        h = s_next - s
        here, divergence = slope(y, before)
        there, divergence_there = slope(y + h * here, t)
        integral = integral + 0.5 * h * (divergence + divergence_there)
        return (y + 0.5 * h * (here + there), integral, t, s_next), None

    start = (z0, jnp.zeros(len(z0)), jnp.asarray(times[0]), jnp.zeros(()))
    # the first step goes from the clean data, where no denoiser was trained, with the slopes of the first timestep
    (y, integral, _, _), _ = jax.lax.scan(step, start, jnp.asarray(times))
    dims = math.prod(z0.shape[1:])
    spread = jnp.sqrt(schedule.alpha[last] ** 2 + schedule.sigma[last] ** 2) / schedule.alpha[last]
    log_end = -0.5 * _sum((y / spread) ** 2) - dims * (jnp.log(spread) + 0.5 * math.log(2 * math.pi))
    return -(log_end + integral) / (math.log(2) * dims)


def _learned(v: Float[Array, "b *spatial v"], z0: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial c"]:
    if v.shape != z0.shape:
        raise UserError("variance=learned needs a denoiser that learns it: diffusion.variance=learned in training")
    return v


def _sum(x: Float[Array, "b *spatial c"]) -> Float[Array, " b"]:
    return x.reshape(len(x), -1).sum(1)


def _times(schedule: NoiseSchedule, num_steps: int | None) -> Int[np.ndarray, " n"]:
    """The timesteps visited, from the first to the last that has signal."""
    last = int(np.flatnonzero(np.asarray(schedule.alpha) > _LEAST_SIGNAL)[-1])
    if num_steps is not None and not 2 <= num_steps <= last + 1:
        raise UserError(f"num_steps={num_steps} must be from 2 to the {last + 1} timesteps that have signal")
    return np.unique(np.linspace(0, last, num_steps or last + 1).round().astype(np.int32))


def _probes(z0: Float[Array, "b *spatial c"], keys: Key[Array, " b"], count: int | None) -> Float[Array, "n b *rest"]:
    """Random signs, or the basis vectors, each for the whole batch."""
    shape = z0.shape[1:]
    if count is None:
        basis = jnp.eye(math.prod(shape)).reshape(-1, 1, *shape)
        return jnp.broadcast_to(basis, (len(basis), *z0.shape))
    draw = jax.vmap(lambda key: jax.random.rademacher(key, (count, *shape), jnp.float32), out_axes=1)
    return draw(keys)
