"""The class embedder: a class becomes one context token (LDM's ClassEmbedder); one more entry stands for no class.

The labels pass through as well, for denoisers with a class embedding of their own.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.config import ClassConditioning


class ClassEmbedder(nn.Module):
    """`class_labels` [b] in 0..num_classes (num_classes: no class) to a context of one token."""

    config: ClassConditioning
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """Look the classes up."""
        del train  # nothing here behaves otherwise in training
        labels = inputs["class_labels"]
        table = nn.Embed(self.config.num_entries, self.config.context_dim, name="embedding")
        return Conditions(context=table(labels)[:, None].astype(self.dtype), class_labels=labels)

    def null_inputs(self, batch: int) -> Inputs:
        """The inputs of `batch` samples without a class: the last entry of the table."""
        return {"class_labels": jnp.full((batch,), self.config.num_entries - 1, jnp.int32)}
