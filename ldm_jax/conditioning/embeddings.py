"""Context computed elsewhere, which reaches the denoiser as it is (RDM, Blattmann et al. 2022, arXiv:2204.11824)."""

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.config import EmbeddingConditioning


class GivenEmbeddings(nn.Module):
    """`embeddings` [b, context_length, context_dim] as the context; it has no parameters."""

    config: EmbeddingConditioning

    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """Pass the embeddings on."""
        del train
        return Conditions(context=inputs["embeddings"])

    def null_inputs(self, batch: int) -> Inputs:
        """Zeros for `batch` samples, as RDM drops its neighbours."""
        return {"embeddings": jnp.zeros((batch, self.config.context_length, self.config.context_dim))}
