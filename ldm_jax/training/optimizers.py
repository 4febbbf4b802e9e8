"""AdamW with warm-up, decay and clipping (Loshchilov and Hutter 2017, arXiv:1711.05101).

(1) learning rate at step s: peak * s / warmup_steps, then the decay from peak to ratio * peak at the last step
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldm_jax.config import AutoencoderVQConfig, FirstStageConfig, OptimizerConfig


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


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping, Adam moments in float32, decoupled weight decay."""
    clip = optax.identity() if config.max_grad_norm is None else optax.clip_by_global_norm(config.max_grad_norm)
    adamw = optax.adamw(
        learning_rate_schedule(config, num_steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mu_dtype=jnp.float32,
    )
    return optax.chain(clip, adamw)


def make_first_stage_optimizer(config: FirstStageConfig) -> optax.GradientTransformation:
    """The autoencoder's optimizer, and the discriminator's own where there is one: each clips its own gradients.

    Codes that follow by averages are left alone, weight decay included.
    """

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        names = [getattr(entry, "key", None) for entry in path]
        if by_average and names[:2] == ["autoencoder", "codebook"]:
            return "fixed"
        return "discriminator" if names[0] == "discriminator" else "autoencoder"

    steps, autoencoder = config.training.num_steps, make_optimizer(config.optimizer, config.training.num_steps)
    by_average = isinstance(config.autoencoder, AutoencoderVQConfig) and config.autoencoder.codes == "average"
    if config.discriminator is None and not by_average:
        return autoencoder
    optimizers: dict[Hashable, optax.GradientTransformation] = {
        "autoencoder": autoencoder,
        "fixed": optax.set_to_zero(),
    }
    if config.discriminator is not None:
        optimizers["discriminator"] = make_optimizer(config.discriminator.optimizer, steps)
    return optax.multi_transform(optimizers, lambda params: jax.tree_util.tree_map_with_path(label, params))
