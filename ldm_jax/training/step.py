"""One optimizer step from a loss function: gradients over micro-batches, update, moving average, and what went wrong.

The same step serves both stages; they differ in their loss function alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ldm_jax.config import TrainingConfig
from ldm_jax.model import Params
from ldm_jax.training.power_average import gamma_of, update_power_average
from ldm_jax.training.state import TrainState, profile_name, update_average

Batch = dict[str, Array]
Metrics = dict[str, Array]

LossFn = Callable[[Params, Params, Batch, Key[Array, ""], Int[Array, ""]], tuple[Float[Array, ""], Metrics]]
"""Trained and fixed parameters (frozen and constant), batch, root key, step -> mean loss over the batch, metrics."""

Step = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]

Follow = Callable[[Params, Params, Metrics, Key[Array, ""], Int[Array, ""]], tuple[Params, Params]]
"""Trained and frozen parameters, metrics, root key, step -> both, moved by what the step has found."""


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
    follow: Follow = lambda params, frozen, *_: (params, frozen),
    gather: Callable[[Params], Params] = lambda params: params,
) -> Step:
    """The step of a stage, to be compiled with its state donated.

    `follow` moves what has no gradient, behind the optimizer; `gather` makes parameters whole that devices share
    (`sharding.make_gather`). The metrics are those of the loss function and `loss`,
    `grad_norm` (before clipping), and `leaf_norms`: the gradient norm of each parameter in the order of
    `jax.tree.leaves`, by which a non-finite gradient is traced to its layer.
    """

    gammas = [gamma_of(width) for width in config.ema_profiles]
    update = optax.with_extra_args_support(optimizer).update  # clipping takes the norm that is computed here

    def step(state: TrainState, batch: Batch, root: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        def loss_of(params: Params, micro: Batch) -> tuple[Float[Array, ""], Metrics]:
            return loss_fn(gather(params), {**state.frozen, **state.constants}, micro, root, state.step)

        gradients, metrics = accumulate_gradients(loss_of, state.params, batch, config.gradient_accumulation)
        leaf_norms = jnp.stack([_norm(gradient) for gradient in jax.tree.leaves(gradients)])
        norm = jnp.linalg.norm(leaf_norms)
        updates, opt_state = update(gradients, state.opt_state, state.params, grad_norm=norm)
        params: Params = optax.apply_updates(state.params, updates)  # pyright: ignore[reportAssignmentType]
        params, frozen = follow(params, state.frozen, metrics, root, state.step)
        average = update_average(state.ema_params, params, state.step, config.ema_decay, warmup=config.ema_warmup)
        profiles = {
            profile_name(i): update_power_average(state.profiles[profile_name(i)], params, state.step, gamma)
            for i, gamma in enumerate(gammas)
        }
        metrics = {**metrics, "grad_norm": norm, "leaf_norms": leaf_norms}
        return TrainState(state.step + 1, params, average, opt_state, frozen, profiles, state.constants), metrics

    return step


def _norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Euclidean norm in the shape that `x` has: as one long row it would be gathered from all devices first."""
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def accumulate_gradients(
    loss_of: Callable[[Params, Batch], tuple[Float[Array, ""], Metrics]], params: Params, batch: Batch, parts: int
) -> tuple[Params, Metrics]:
    """Mean gradient and metrics over `parts` micro-batches, one at a time in memory.

    A micro-batch takes every `parts`-th sample, so that each device keeps its own samples in every micro-batch.
    """
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def one(micro: Batch) -> tuple[Params, Metrics]:
        (loss, metrics), gradients = gradient_of(params, micro)
        return gradients, {**metrics, "loss": loss}

    if parts == 1:
        return one(batch)
    micros = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Params, micro: Batch) -> tuple[Params, Metrics]:
        gradients, metrics = one(micro)
        return jax.tree.map(jnp.add, total, gradients), metrics

    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), micros)
    return jax.tree.map(lambda x: x / parts, total), jax.tree.map(lambda x: x.mean(0), metrics)
