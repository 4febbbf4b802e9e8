"""AdamW with warm-up, decay and clipping (Loshchilov and Hutter 2017, arXiv:1711.05101).

(1) learning rate at step s: peak * s / warmup_steps, then the decay from peak to ratio * peak at the last step
(2) a number between two neighbours of a narrower type becomes the upper one with a chance equal to its share of the
    way, so that it is right on average    (Gupta et al. 2015, arXiv:1502.02551, section 3)
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ldm_jax.config import FirstStageConfig, OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by step (1)."""
    rest = max(num_steps - config.warmup_steps, 1)
    final = config.learning_rate * config.final_learning_rate_ratio
    decay: optax.Schedule
    if config.decay == "cosine":
        decay = optax.cosine_decay_schedule(config.learning_rate, rest, config.final_learning_rate_ratio)
    elif config.decay == "linear":
        decay = optax.linear_schedule(config.learning_rate, final, rest)
    else:
        decay = optax.constant_schedule(config.learning_rate)
    if config.warmup_steps == 0:
        return decay
    # The first step already moves: (s + 1) / warmup_steps.
    warmup = optax.linear_schedule(
        config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps - 1
    )
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """Clipping, Adam moments, decoupled weight decay.

    Its update takes the gradient's norm as `grad_norm` from a step that knows it already.
    """
    clip = optax.identity() if config.max_grad_norm is None else clip_by_norm(config.max_grad_norm)
    moments = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon, mu_dtype=jnp.float32)
    adamw = optax.chain(
        moments if config.moment_dtype == "float32" else keep_in_bfloat16(moments),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps)),
    )
    return optax.chain(clip, adamw)


def clip_by_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Shrink gradients to a global norm; `grad_norm` is computed here where the caller does not give it."""

    def update(
        updates: Any, state: Any, params: Any = None, *, grad_norm: Float[Array, ""] | None = None, **others: Any
    ) -> tuple[Any, Any]:
        del params, others
        norm = optax.global_norm(updates) if grad_norm is None else grad_norm
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    def init(params: Any) -> Any:
        del params
        return optax.EmptyState()

    return optax.GradientTransformationExtraArgs(init, update)


def keep_in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation with a state in bfloat16, computed in float32 and rounded by chance (2).

    Rounded to the nearest, a second moment whose decay is 0.999 would not move for changes below four times itself.
    """

    def init(params: Any) -> Any:
        return _map_numbers(lambda x, _: x.astype(jnp.bfloat16), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide: Any = _map_numbers(lambda x, _: x.astype(jnp.float32), state)
        updates, wide = inner.update(updates, wide, params)
        keys = jax.random.fold_in(jax.random.key(0), wide.count)
        return updates, _map_numbers(lambda x, i: round_by_chance(x, jax.random.fold_in(keys, i)), wide)

    return optax.GradientTransformation(init, update)


def _map_numbers(change: Any, tree: Any) -> Any:
    """Apply `change(leaf, index)` to the floating-point leaves of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    changed = [change(x, i) if jnp.issubdtype(x.dtype, jnp.floating) else x for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, changed)


def round_by_chance(x: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
    """float32 to bfloat16 (2): a random number is added to the 16 bits that are cut off."""
    bits: Int[Array, "*shape"] = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(kept, jnp.float32), x).astype(jnp.bfloat16)


def make_first_stage_optimizer(config: FirstStageConfig) -> optax.GradientTransformation:
    """The autoencoder's optimizer, and the discriminator's own where there is one: each clips its own gradients.

    Codes that follow by averages are left alone, weight decay included.
    """

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        names = [getattr(entry, "key", None) for entry in path]
        if by_average and names[:2] == ["autoencoder", "codebook"]:
            return "fixed"
        return "discriminator" if names[0] == "discriminator" else "autoencoder"

    def alone(config: OptimizerConfig) -> optax.GradientTransformation:
        """Without the norm that the step computes, which is that of both."""
        inner = make_optimizer(config, steps)
        return optax.GradientTransformation(
            inner.init, lambda updates, state, params=None: inner.update(updates, state, params)
        )

    steps = config.training.num_steps
    by_average = config.averaged_codebook is not None
    if config.judge is None and not by_average:
        return make_optimizer(config.optimizer, steps)
    optimizers: dict[Hashable, optax.GradientTransformation] = {
        "autoencoder": alone(config.optimizer),
        "fixed": optax.set_to_zero(),
    }
    if config.judge is not None:
        optimizers["discriminator"] = alone(config.judge.optimizer)
    return optax.multi_transform(optimizers, lambda params: jax.tree_util.tree_map_with_path(label, params))
