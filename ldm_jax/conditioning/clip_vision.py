"""CLIP's vision transformer (Radford et al. 2021, arXiv:2103.00020, section 2.4).

Patches of the picture as tokens behind a class token, position embedding, a norm, the layers of the text transformer
without the causal mask, a norm of the class token and a projection into the space that captions share.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.conditioning.clip_text import ClipLayer
from ldm_jax.config import ClipVisionConfig
from ldm_jax.nn.dense import Dense, spread
from ldm_jax.nn.norm import layer_norm
from ldm_jax.nn.parameter import parameter


class ClipImage(NamedTuple):
    """Outputs of the transformer."""

    hidden: tuple[Float[Array, "b l c"], ...]
    """The normalised embedding of class token and patches, row by row, and the output of each layer."""
    unprojected: Float[Array, "b c"]
    """The class token of the last of them behind the final norm."""
    pooled: Float[Array, "b p"]
    """The same projected, where the model has a projection: the embedding of the picture."""


class ClipVisionTransformer(nn.Module):
    """A picture [b, image_size, image_size, channels], normalised as the model was trained, to its embedding."""

    config: ClipVisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> ClipImage:
        """Encode the pictures."""
        config = self.config
        x = self._embed(image)
        hidden = [layer_norm(self.dtype, "norm_in", config.norm_epsilon)(x)]
        for i in range(config.num_layers):
            hidden.append(ClipLayer(config, False, self.dtype, name=f"layer_{i}")(hidden[-1]))
        pooled = layer_norm(self.dtype, "norm_out", config.norm_epsilon)(hidden[-1][:, 0])
        if config.projection_dim is None:
            return ClipImage(tuple(hidden), pooled, pooled)
        projection = Dense(config.projection_dim, use_bias=False, dtype=self.dtype, name="projection")
        return ClipImage(tuple(hidden), pooled, projection(pooled))

    def _embed(self, image: Float[Array, "b h w c"]) -> Float[Array, "b l d"]:
        """Class token and patches with their positions."""
        width, size = self.config.width, (self.config.patch_size,) * 2
        patch = nn.Conv(width, size, size, padding="VALID", use_bias=False, dtype=self.dtype, name="patch")
        patches = patch(image).reshape(image.shape[0], -1, width)
        init = nn.initializers.normal(width**-0.5)
        token = parameter(self, "class_token", init, (width,))
        position = parameter(self, "position", init, (patches.shape[1] + 1, width))
        tokens = jnp.concatenate([spread(token, (image.shape[0], 1, width), self.dtype), patches], axis=1)
        return tokens + spread(position, tokens.shape, self.dtype)
