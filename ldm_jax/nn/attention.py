"""The layers made of attention; what computes attention itself is in dot_product_attention.py.

(1) geglu(x) = (x W) * gelu(x V)                       Shazeer 2020, arXiv:2002.05202
(2) quick_gelu(x) = x sigmoid(1.702 x)                 Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dense import Dense
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel, dot_product_attention
from ldm_jax.nn.norm import GroupNorm, layer_norm


class Attention(nn.Module):
    """Multi-head attention with learned projections; self-attention when no context is given."""

    num_heads: int
    use_bias: bool = False
    zero_init: bool = False
    causal: bool = False
    num_head_channels: int | None = None
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(self, x: Float[Array, "b q c"], context: Float[Array, "b k e"] | None = None) -> Float[Array, "b q c"]:
        """Attend from the tokens `x` to `context` or, without one, to `x`."""
        channels = x.shape[-1]
        width = self.num_head_channels or channels // self.num_heads
        source = x if context is None else context

        def project(inputs: Float[Array, "b l f"], name: str) -> Float[Array, "b l n d"]:
            h = Dense(self.num_heads * width, use_bias=self.use_bias, dtype=self.dtype, name=name)(inputs)
            return h.reshape(*h.shape[:2], self.num_heads, width)

        query, key, value = project(x, "query"), project(source, "key"), project(source, "value")
        h = dot_product_attention(query, key, value, causal=self.causal, kernel=self.kernel)
        kernel_init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        h = h.reshape(*x.shape[:2], self.num_heads * width)
        return Dense(channels, dtype=self.dtype, kernel_init=kernel_init, name="out")(h)


class SelfAttentionBlock(nn.Module):
    """Normalisation, self-attention over all positions, and a skip connection; 0 groups leave the first out."""

    num_heads: int = 1
    num_groups: int = 32
    norm_epsilon: float = 1e-5
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial c"]:
        """Apply the block."""
        h = GroupNorm(self.num_groups, self.norm_epsilon, self.dtype, name="norm")(x) if self.num_groups else x
        h = h.reshape(h.shape[0], -1, h.shape[-1])  # [b, positions, c]
        attention = Attention(
            self.num_heads,
            use_bias=True,
            zero_init=self.zero_init,
            dtype=self.dtype,
            kernel=self.kernel,
            name="attention",
        )
        return x + attention(h).reshape(x.shape)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The approximation (2) of GELU in OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Phi(x) by the error function itself, whose complement, as in `jax.nn.gelu`, is two to three times as dear."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


class FeedForward(nn.Module):
    """Two dense layers around GEGLU (1), GELU or its quick approximation (2); four times as wide inside by default."""

    activation: Literal["geglu", "gelu", "quick_gelu"] = "geglu"
    width: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"]) -> Float[Array, "b l c"]:
        """Apply the layers to each token."""
        channels, gated = x.shape[-1], self.activation == "geglu"
        h = Dense((self.width or 4 * channels) * (2 if gated else 1), dtype=self.dtype, name="dense_0")(x)
        if gated:
            h, gate = jnp.split(h, 2, axis=-1)
            h = h * gelu(gate)
        else:
            h = quick_gelu(h) if self.activation == "quick_gelu" else gelu(h)
        return Dense(channels, dtype=self.dtype, name="dense_1")(h)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward, each behind a layer normalisation.

    With `cross_attention_only` the first attention looks at the context as well.
    """

    num_heads: int
    cross_attention_only: bool = False
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], context: Float[Array, "b k e"] | None = None) -> Float[Array, "b l c"]:
        """Apply the block; without a context the second attention looks at `x` again, as in LDM."""
        h = layer_norm(self.dtype, "norm_0")(x)
        attention = Attention(self.num_heads, dtype=self.dtype, kernel=self.kernel, name="self_attention")
        x = x + attention(h, context if self.cross_attention_only else None)
        h = layer_norm(self.dtype, "norm_1")(x)
        x = x + Attention(self.num_heads, dtype=self.dtype, kernel=self.kernel, name="cross_attention")(h, context)
        return x + FeedForward(dtype=self.dtype, name="feed_forward")(layer_norm(self.dtype, "norm_2")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions of a feature map, with a skip connection around them (LDM, appendix E.2.1).

    The input projection is a 1x1 convolution, or a dense layer after flattening (SD 2): the same arithmetic, another
    parameter shape. The output projection starts at zero.
    """

    num_heads: int
    depth: int = 1
    linear_projection: bool = False
    cross_attention_only: bool = False
    num_groups: int = 32
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *spatial c"], context: Float[Array, "b k e"] | None = None
    ) -> Float[Array, "b *spatial c"]:
        """Apply the transformer to the feature map `x`."""
        channels = x.shape[-1]
        h = GroupNorm(self.num_groups, 1e-6, self.dtype, name="norm")(x)
        h = self._projection(channels, "project_in", zero_init=False)(h)
        h = h.reshape(h.shape[0], -1, channels)  # [b, positions, c]
        for i in range(self.depth):
            h = TransformerBlock(self.num_heads, self.cross_attention_only, self.dtype, self.kernel, name=f"block_{i}")(
                h, context
            )
        h = self._projection(channels, "project_out", zero_init=True)(h.reshape(x.shape))
        return x + h

    def _projection(self, channels: int, name: str, *, zero_init: bool) -> nn.Module:
        if not self.linear_projection:
            return Conv(channels, kernel_size=1, zero_init=zero_init, dtype=self.dtype, name=name)
        kernel_init = nn.initializers.zeros if zero_init else nn.initializers.lecun_normal()
        return Dense(channels, dtype=self.dtype, kernel_init=kernel_init, name=name)
