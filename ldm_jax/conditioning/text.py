"""The text transformer that is trained jointly with the denoiser (LDM, appendix E.2.1: token and position embedding,
pre-norm layers of self-attention and feed-forward without a causal mask, a final norm)."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.conditioning.tokenizer import empty_tokens
from ldm_jax.config import ClipTextConditioning, TextConditioning
from ldm_jax.nn.attention import Attention, FeedForward
from ldm_jax.nn.dense import Dense, spread
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel
from ldm_jax.nn.norm import layer_norm
from ldm_jax.nn.parameter import parameter


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


class BoxEmbedding(nn.Module):
    """Objects as (label, corner, corner) to a vector each: GLIGEN's grounding tokens (Li et al. 2023, arXiv:2301.07093,
    equation 5).

    (1) MLP([e(label), waves(left, top, right, bottom)]), waves(u) = sin(2^k pi u), cos(2^k pi u) with u in [0, 1] and
        k from 0 up to half a wave between two lines of the grid
    """

    config: TextConditioning
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"], label: Float[Array, "b l//3 c"]) -> Float[Array, "b l//3 c"]:
        """Embed the objects, whose labels are embedded already (1)."""
        lines = math.isqrt(self.config.vocab_size - 1)
        corners = tokens.reshape(len(tokens), -1, 3)[..., 1:]
        places = jnp.stack([corners % lines, corners // lines], axis=-1) / max(lines - 1, 1)
        frequencies = jnp.pi * 2.0 ** jnp.arange(max(1, (lines - 1).bit_length()))
        angles = (places[..., None] * frequencies).reshape(*places.shape[:2], -1)
        x = jnp.concatenate([label, jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(self.dtype)
        x = nn.silu(Dense(4 * self.config.context_dim, dtype=self.dtype, name="dense_0")(x))
        return Dense(self.config.context_dim, dtype=self.dtype, name="dense_1")(x)


class TextTransformer(nn.Module):
    """`tokens` [b, context_length] to a context of as many tokens, or of one for each object."""

    config: TextConditioning
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """Encode the tokens."""
        config = self.config
        init = nn.initializers.normal(0.02)
        embed = nn.Embed(config.vocab_size, config.context_dim, embedding_init=init, name="token")
        tokens = inputs["tokens"]
        if config.tokens_per_box == 1:  # objects have no order
            x = BoxEmbedding(config, self.dtype, name="boxes")(tokens, embed(tokens[:, ::3]))
        else:
            position = parameter(self, "position", init, (config.context_length, config.context_dim))
            x = embed(tokens).astype(self.dtype)
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
