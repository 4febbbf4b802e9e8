"""CLIP's text transformer (Radford et al. 2021, arXiv:2103.00020, section 2.4), and SDXL's pair of them.

Token and position embedding, pre-norm layers of causal self-attention and feed-forward, a final norm. Its context is
the output of the last layer or of the one before, behind the final norm or not; its pooled text is the normalised
output at the end mark, projected where the model has a projection. SDXL concatenates the contexts of two, and makes a
vector of the second's pooled text and of six embedded sizes (Podell et al. 2023, arXiv:2307.01952, sections 2.1 and
2.2).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.conditioning.text import empty_prompts
from ldm_jax.config import ClipTextConditioning, ClipVisionConfig, SdxlConditioning
from ldm_jax.nn.attention import Attention, FeedForward
from ldm_jax.nn.dense import Dense, spread
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel
from ldm_jax.nn.embeddings import sinusoidal_embedding
from ldm_jax.nn.norm import layer_norm
from ldm_jax.nn.parameter import parameter

# Height and width of the original, its cropped top and left, height and width of the target.
NUM_SIZES = 6
# A token that no text has: a sample without a prompt, whose context and pooled text are zeros.
NO_PROMPT = -1


class ClipText(NamedTuple):
    """Outputs of the transformer."""

    hidden: tuple[Float[Array, "b l c"], ...]
    """The embedded tokens and the output of each layer."""
    last: Float[Array, "b l c"]
    """The last of them behind the final norm."""
    unprojected: Float[Array, "b c"]
    """Its value at the end mark."""
    pooled: Float[Array, "b p"]
    """The same projected, where the model has a projection."""


class ClipLayer(nn.Module):
    """Self-attention, causal for text, and feed-forward, each behind a layer normalisation."""

    config: ClipTextConditioning | ClipVisionConfig
    causal: bool
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Apply the layer."""
        config = self.config
        attention = Attention(
            config.num_heads,
            use_bias=True,
            causal=self.causal,
            dtype=self.dtype,
            kernel=self.kernel,
            name="attention",
        )
        x = x + attention(layer_norm(self.dtype, "norm_0", config.norm_epsilon)(x))
        feed_forward = FeedForward(config.activation, config.mlp_dim, self.dtype, name="feed_forward")
        return x + feed_forward(layer_norm(self.dtype, "norm_1", config.norm_epsilon)(x))


class ClipTextTransformer(nn.Module):
    """`tokens` [b, context_length] to a context of as many tokens."""

    config: ClipTextConditioning
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    def setup(self) -> None:
        """Name the parts."""
        config, init = self.config, nn.initializers.normal(0.02)
        self.token = nn.Embed(config.vocab_size, config.context_dim, embedding_init=init, name="token")
        self.position = parameter(
            self, "position", nn.initializers.normal(0.01), (config.context_length, config.context_dim)
        )
        self.layers = [
            ClipLayer(config, True, self.dtype, self.kernel, name=f"layer_{i}") for i in range(config.num_layers)
        ]
        self.norm_out = layer_norm(self.dtype, "norm_out", config.norm_epsilon)
        if config.projection_dim is not None:
            self.projection = Dense(config.projection_dim, use_bias=False, dtype=self.dtype, name="projection")

    def encode(self, tokens: Int[Array, "b l"]) -> ClipText:
        """All outputs for at most context_length tokens."""
        token = self.token(tokens).astype(self.dtype)
        hidden = [token + spread(self.position[: tokens.shape[1]], token.shape, self.dtype)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        last = self.norm_out(hidden[-1])
        at = jnp.argmax(tokens == self.config.end_token if self.config.pooled_at == "end" else tokens, axis=-1)
        pooled = jnp.take_along_axis(last, at[:, None, None], axis=1)[:, 0]
        projected = pooled if self.config.projection_dim is None else self.projection(pooled)
        return ClipText(tuple(hidden), last, pooled, projected)

    def context(self, outputs: ClipText) -> Float[Array, "b l c"]:
        """The output that the denoiser sees."""
        if self.config.context_layer == "last":
            return outputs.last if self.config.context_norm else outputs.hidden[-1]
        return self.norm_out(outputs.hidden[-2]) if self.config.context_norm else outputs.hidden[-2]

    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """Encode the tokens."""
        del train  # it has no dropout
        return Conditions(context=self.context(self.encode(inputs["tokens"])))

    def null_inputs(self, batch: int) -> Inputs:
        """The inputs of `batch` empty prompts."""
        return {"tokens": empty_prompts(self.config, batch)}


class SdxlConditioner(nn.Module):
    """`tokens` and `tokens_2` [b, context_length] and `sizes` [b, 6] in pixels to a context and a vector.

    What `embed` has made of the tokens can stand in their place.
    """

    config: SdxlConditioning
    image_size: int
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    def setup(self) -> None:
        """Name the parts."""
        self.first = ClipTextTransformer(self.config.first, self.dtype, self.kernel, name="first")
        self.second = ClipTextTransformer(self.config.second, self.dtype, self.kernel, name="second")

    def __call__(self, inputs: Inputs, *, train: bool = False) -> Conditions:
        """Encode the tokens with both, and the sizes."""
        del train  # it has no dropout
        texts = inputs if "context" in inputs else self.embed(inputs)
        sizes = sinusoidal_embedding(inputs["sizes"].reshape(-1), self.config.size_dim)
        sizes = sizes.reshape(-1, NUM_SIZES * self.config.size_dim)
        vector = jnp.concatenate([texts["pooled"].astype(jnp.float32), sizes], axis=-1)
        return Conditions(context=texts["context"], vector=vector)

    def embed(self, inputs: Inputs) -> Inputs:
        """`context` [b, context_length, context_dim] of both and `pooled` [b, d] of the second, of the tokens."""
        first, second = self.first.encode(inputs["tokens"]), self.second.encode(inputs["tokens_2"])
        context = jnp.concatenate([self.first.context(first), self.second.context(second)], axis=-1)
        given = inputs["tokens"][:, :1] != NO_PROMPT
        return {"context": jnp.where(given[..., None], context, 0), "pooled": jnp.where(given, second.pooled, 0)}

    def null_inputs(self, batch: int) -> Inputs:
        """The inputs of `batch` samples without a prompt, for pictures that are neither scaled nor cropped."""
        side = self.image_size
        tokens = {
            "tokens": empty_prompts(self.config.first, batch),
            "tokens_2": empty_prompts(self.config.second, batch),
        }
        if self.config.no_prompt == "zeros":
            tokens = {name: jnp.full_like(x, NO_PROMPT) for name, x in tokens.items()}
        return {
            **tokens,
            "sizes": jnp.tile(jnp.asarray([side, side, 0, 0, side, side], jnp.int32), (batch, 1)),
        }
