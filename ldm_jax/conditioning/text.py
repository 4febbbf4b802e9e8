"""The text transformer that is trained jointly with the denoiser (LDM, appendix E.2.1: token and position embedding,
pre-norm layers of self-attention and feed-forward without a causal mask, a final norm)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.conditioning.tokenizer import empty_tokens
from ldm_jax.config import ClipTextConditioning, TextConditioning
from ldm_jax.nn.attention import Attention, FeedForward
from ldm_jax.nn.dense import spread
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel
from ldm_jax.nn.norm import layer_norm


def empty_prompts(config: TextConditioning | ClipTextConditioning, batch: int) -> Int[Array, "b l"]:
    """The tokens of `batch` empty prompts."""
    marks = (config.begin_token, config.end_token, config.pad_token)
    return jnp.asarray(np.tile(empty_tokens(config.context_length, *marks), (batch, 1)))


class TextLayer(nn.Module):
    """Self-attention and feed-forward, each behind a layer normalisation."""

    config: TextConditioning
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], *, train: bool) -> Float[Array, "b l c"]:
        """Apply the layer."""
        drop = nn.Dropout(self.config.dropout, deterministic=not train, name="dropout")
        heads = (self.config.num_heads, self.config.num_head_channels)
        attention = Attention(
            heads[0], num_head_channels=heads[1], dtype=self.dtype, kernel=self.kernel, name="attention"
        )
        x = x + drop(attention(layer_norm(self.dtype, "norm_0")(x)))
        feed_forward = FeedForward("gelu", self.config.mlp_dim, self.dtype, name="feed_forward")
        return x + drop(feed_forward(layer_norm(self.dtype, "norm_1")(x)))


class TextTransformer(nn.Module):
    """`tokens` [b, context_length] to a context of as many tokens."""

    config: TextConditioning
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """Encode the tokens."""
        config = self.config
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(config.vocab_size, config.context_dim, embedding_init=init, name="token")
        position = self.param("position", init, (config.context_length, config.context_dim), jnp.float32)
        x = embed(inputs["tokens"]).astype(self.dtype)
        x = x + spread(position, x.shape, self.dtype)
        x = nn.Dropout(config.dropout, deterministic=not train, name="dropout")(x)
        for i in range(config.num_layers):
            x = TextLayer(config, self.dtype, self.kernel, name=f"layer_{i}")(x, train=train)
        return Conditions(context=layer_norm(self.dtype, "norm_out")(x))

    def null_inputs(self, batch: int) -> Inputs:
        """The inputs of `batch` empty prompts; of layouts, of as many without objects."""
        if self.config.tokens == "boxes":
            return {"tokens": jnp.full((batch, self.config.context_length), self.config.vocab_size - 1, jnp.int32)}
        return {"tokens": empty_prompts(self.config, batch)}
