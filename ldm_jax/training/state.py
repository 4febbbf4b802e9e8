"""The state of a training run: everything that decides what the next step does.

(1) ema <- d ema + (1 - d) params,  d = ema_decay, or min(ema_decay, (1 + n) / (10 + n)) at the n-th step, from 1, while
    it is warmed up, as in LDM's LitEma
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ldm_jax.model import Params


class TrainState(NamedTuple):
    """Optimizer steps done, trained parameters, their moving average, optimizer state, and parameters held fixed.

    Beside these, which make a checkpoint, `constants` that a loss measures with: they are read anew at each start.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: Any
    frozen: Params
    constants: Params

    @classmethod
    def create(cls, params: Params, frozen: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step, without constants."""
        average = jax.tree.map(jnp.copy, params)  # a buffer of its own: the step donates both
        return cls(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), frozen, {})

    @property
    def model_params(self) -> Params:
        """Parameters of the model as it is used: averages of what is trained, and what is fixed."""
        return {**self.ema_params, **self.frozen}


def update_average(
    average: Params, params: Params, step: Int[Array, ""], ema_decay: float, *, warmup: bool = True
) -> Params:
    """Move the average towards the parameters (1); `step` counts the steps done before this one."""
    decay = jnp.minimum(ema_decay, (2.0 + step) / (11.0 + step)) if warmup else jnp.float32(ema_decay)
    return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
