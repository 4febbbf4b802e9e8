"""The conditioner of a model without conditions."""

import flax.linen as nn

from ldm_jax.conditioning.conditions import Conditions, Inputs


class NoConditioner(nn.Module):
    """Gives nothing to the denoiser and has no parameters."""

    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """No conditions."""
        del inputs, train
        return Conditions()

    def null_inputs(self, batch: int) -> Inputs:
        """No inputs."""
        del batch
        return {}
