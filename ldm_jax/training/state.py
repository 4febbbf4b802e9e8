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

OF_TRAINING = ("timestep_history",)
"""What lies among the fixed parameters, is moved by training, and is not looked at by the model."""


class TrainState(NamedTuple):
    """Optimizer steps done, trained parameters, their moving average, optimizer state, and parameters held fixed.

    Beside these, which make a checkpoint, `constants` that a loss measures with: they are read anew at each start.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: Any
    frozen: Params
    profiles: Params
    """Further averages, each by its name: what `TrainingConfig.ema_profiles` asks for."""
    constants: Params

    @classmethod
    def create(
        cls, params: Params, frozen: Params, optimizer: optax.GradientTransformation, num_profiles: int = 0
    ) -> "TrainState":
        """The state before the first step, without constants."""

        def copy() -> Params:  # a buffer of its own: the step donates all
            return jax.tree.map(jnp.copy, params)

        profiles = {profile_name(i): copy() for i in range(num_profiles)}
        return cls(jnp.zeros((), jnp.int32), params, copy(), optimizer.init(params), frozen, profiles, {})

    @property
    def model_params(self) -> Params:
        """Parameters of the model as it is used: averages of what is trained, and what is fixed."""
        fixed = {name: value for name, value in self.frozen.items() if name not in OF_TRAINING}
        return {**self.ema_params, **fixed}

    @property
    def of_training(self) -> Params:
        """What has no gradient and is no part of the model."""
        return {name: value for name, value in self.frozen.items() if name in OF_TRAINING}


def profile_name(index: int) -> str:
    """Name of a further average, in a state and in a snapshot, by its place in `TrainingConfig.ema_profiles`."""
    return f"profile_{index}"


def update_average(
    average: Params, params: Params, step: Int[Array, ""], ema_decay: float, *, warmup: bool = True
) -> Params:
    """Move the average towards the parameters (1); `step` counts the steps done before this one."""
    decay = jnp.minimum(ema_decay, (2.0 + step) / (11.0 + step)) if warmup else jnp.float32(ema_decay)
    return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
