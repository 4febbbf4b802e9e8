"""The interface of every sampler, and the one loop that serves them all.

A sampler is a value: arrays of coefficients, one row for each step, and two pure functions. `init(z)` makes the first
state; `step(predict, state, row, noise)` makes the next. A state is any tree of arrays with a field `z`, the latent in
the sampler's own coordinates, so a multistep method keeps its history beside it. A row holds whatever numbers a step
needs, the first of them `t`, the time at which it calls the denoiser. Samplers have a row for each call, so that a
program holds the denoiser once; only the adaptive solver, which cannot know its times beforehand, calls it more often.

To add a sampler, write one file with a factory that computes its rows on the host in float64 and returns a `Sampler`,
and one line in the table of `make.py`. Where its steps are linear in what it has seen, `linear.py` has the program.
A step closes over nothing but choices that change the program; numbers belong in the rows. Make it with
`functools.cache`, so that equal choices give the same function: samplers with other numbers then share one compilation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from ldm_jax import rng
from ldm_jax.diffusion.learned_variance import split_output
from ldm_jax.diffusion.prediction import DenoiseFn
from ldm_jax.diffusion.samplers.grid import Grid, finite_grid

Latent: TypeAlias = Float[Array, "b *spatial c"]
Output: TypeAlias = Float[Array, "b *spatial o"]
"""A prediction, and behind it the channels of a learned variance where a sampler takes it."""
Predict: TypeAlias = Callable[[Latent, Num[Array, "*b"]], Output]
"""`denoise_fn` with one time for the whole batch, or one for each sample."""

Column: TypeAlias = Num[Array, "*n"]
"""One coefficient: an array over the steps, and a scalar in the row that a step is given."""


class OneStepState(NamedTuple):
    """The state of a method without memory."""

    z: Latent


class Start(NamedTuple):
    """The noise level at which a sampler starts, and its coordinates there: the first `z` is `unit * z_t`, with
    `z_t = alpha z_0 + sigma epsilon`."""

    alpha: Float[Array, ""]
    sigma: Float[Array, ""]
    unit: Float[Array, ""]


def start_of(grid: Grid, *, scaled: bool = False) -> Start:
    """Where a sampler over a grid starts; of one that moves y (grid.py, (1)) where it is `scaled`."""
    alpha, sigma = finite_grid(grid.take(np.arange(1)), scaled=True)[1:3] if scaled else (grid.alpha, grid.sigma)
    unit = 1.0 / alpha[0] if scaled and grid.kind == "preserving" else 1.0
    return Start(*columns(*map(np.asarray, (alpha[0], sigma[0], unit))))


@flax.struct.dataclass
class Sampler:
    """A way from noise to latent. A tree whose leaves are the rows: pass it through `jax.jit` as an argument."""

    rows: Any
    """A NamedTuple of arrays `[n, ...]`, with a field `t`."""
    init: Callable[[Latent], Any] = flax.struct.field(pytree_node=False)
    """Standard normal noise to the first state."""
    step: Callable[[Predict, Any, Any, Latent], Any] = flax.struct.field(pytree_node=False)
    """Predict, state, one row, and standard normal noise (zeros unless `stochastic`) to the next state."""
    stochastic: bool = flax.struct.field(pytree_node=False)
    """Whether a step takes fresh noise."""
    start: Start
    """Where it starts, for latents that are not all noise."""
    scale: Float[Array, ""] | float = 1.0
    """What standard normal noise is multiplied with to become the first `z`."""
    takes_variance: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether `predict` gives the channels of a learned variance behind those of the prediction."""

    @property
    def timesteps(self) -> Num[Array, " n"]:
        """Time of each step's first call of the denoiser."""
        return self.rows.t

    @property
    def num_steps(self) -> int:
        """Number of steps n."""
        return self.rows.t.shape[0]


def columns(*arrays: Num[np.ndarray, "..."]) -> tuple[Column, ...]:
    """Coefficients as the device takes them: int32 and float32, or wider under `jax.enable_x64`."""
    return tuple(jnp.asarray(a) for a in arrays)


def initial_noise(key: Key[Array, "*roots"], sample_index: Int[Array, " b"], shape: tuple[int, ...]) -> Latent:
    """Standard normal z_T of `shape` (without batch) for each sample, by its global index."""
    return rng.normal(rng.sample_keys(rng.named_key(key, "initial_noise"), sample_index), shape)


def sample(
    sampler: Sampler, denoise_fn: DenoiseFn, z_init: Latent, key: Key[Array, "*roots"], sample_index: Int[Array, " b"]
) -> Latent:
    """Run a sampler from standard normal noise to z_0, in float32 or wider.

    Args:
        sampler: what `make_sampler` or a sampler's factory returns.
        denoise_fn: the denoiser, guided or not; its predictions are of the type the sampler was made for.
        z_init: the noise to start from.
        key: root of the noise drawn on the way, one for all samples or one for each.
        sample_index: global index of each sample; its noise depends on nothing else.
    """
    return _run(sampler, denoise_fn, _wide(z_init, sampler.scale), key, sample_index, keep=False)[1].z


def sample_from(
    sampler: Sampler, denoise_fn: DenoiseFn, zt: Latent, key: Key[Array, "*roots"], sample_index: Int[Array, " b"]
) -> Latent:
    """As `sample`, but from a latent z_t at the sampler's own `start`, such as a picture with that much noise."""
    return _run(sampler, denoise_fn, _wide(zt, sampler.start.unit), key, sample_index, keep=False)[1].z


def sample_trajectory(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    z_init: Latent,
    key: Key[Array, "*roots"],
    sample_index: Int[Array, " b"],
    noises: Float[Array, "n b *spatial c"] | None = None,
) -> Float[Array, "n_plus_1 b *spatial c"]:
    """As `sample`, but return every iterate: the first is where the sampler starts, the last is z_0.

    Where `noises` are given they are used in place of those drawn from the key.
    """
    z = _wide(z_init, sampler.scale)
    first, _, iterates = _run(sampler, denoise_fn, z, key, sample_index, keep=True, noises=noises)
    return jnp.concatenate([first.z[None], iterates])


def _wide(z: Latent, factor: Float[Array, ""] | float) -> Latent:
    """z times a factor, in float32 or wider."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return z * jnp.asarray(factor, z.dtype)


def _run(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    z_init: Latent,
    key: Key[Array, "*roots"],
    sample_index: Int[Array, " b"],
    keep: bool,
    noises: Float[Array, "n b *spatial c"] | None = None,
) -> tuple[Any, Any, Any]:
    """First state, last state, and the `z` of every state after the first where they are kept; `z_init` is the first
    `z` in the sampler's own coordinates."""

    def predict(z: Latent, t: Num[Array, "*b"]) -> Output:
        output = denoise_fn(z, jnp.broadcast_to(t, z.shape[:1])).astype(z.dtype)
        return output if sampler.takes_variance else split_output(output, z)[0]

    def noise_at(i: Int[Array, ""]) -> Latent:
        if noises is not None:
            return noises[i].astype(z_init.dtype)
        if not sampler.stochastic:
            return jnp.zeros_like(z_init)
        keys = rng.sample_keys(rng.named_key(key, "sampler_noise", i), sample_index)
        return rng.normal(keys, z_init.shape[1:]).astype(z_init.dtype)

    def body(state: Any, inputs: tuple[Int[Array, ""], Any]) -> tuple[Any, Latent | None]:
        i, row = inputs
        state = sampler.step(predict, state, row, noise_at(i))
        return state, state.z if keep else None

    first = sampler.init(z_init)
    last, iterates = jax.lax.scan(body, first, (jnp.arange(sampler.num_steps), sampler.rows))
    return first, last, iterates
