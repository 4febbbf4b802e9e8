"""The denoising U-Net of latent diffusion models and Stable Diffusion.

A stack of residual blocks with changes of resolution by 2 between levels, on the way down and, with a skip connection
from every step of it, on the way up (Ho et al. 2020, arXiv:2006.11239; Dhariwal and Nichol 2021, arXiv:2105.05233);
attention or spatial transformers with cross-attention to the condition at chosen levels (Rombach et al. 2022,
arXiv:2112.10752, section 3.3 and appendix E.2.1). The network knows nothing of noise schedules.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ldm_jax.config import UNetConfig
from ldm_jax.nn.attention import SelfAttentionBlock, SpatialTransformer
from ldm_jax.nn.conv import Conv
from ldm_jax.nn.embeddings import TimeEmbedding
from ldm_jax.nn.norm import GroupNorm
from ldm_jax.nn.resample import Downsample, Upsample
from ldm_jax.nn.resnet import ResBlock


def res_block(
    config: UNetConfig, channels: int, dtype: DTypeLike, name: str, resample: Literal["up", "down"] | None = None
) -> ResBlock:
    """A residual block with the U-Net's settings; its last convolution starts at zero."""
    return ResBlock(
        channels,
        config.num_groups,
        dropout=config.dropout,
        scale_shift_norm=config.scale_shift_norm,
        resample=resample,
        zero_init=True,
        dtype=dtype,
        name=name,
    )


def attention_block(config: UNetConfig, level: int, dtype: DTypeLike, name: str) -> nn.Module:
    """The attention of a level: plain self-attention, or a spatial transformer that also sees the context."""
    heads = config.heads_at(level)
    if config.attention == "self":
        return SelfAttentionBlock(heads, config.num_groups, zero_init=True, dtype=dtype, name=name)
    depth = config.depth_at(level)
    return SpatialTransformer(heads, depth, config.linear_projection, config.num_groups, dtype, name=name)


class Block(nn.Module):
    """A residual block, then attention where the level has it."""

    config: UNetConfig
    level: int
    attention: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *spatial c"],
        embedding: Float[Array, "b e"],
        context: Float[Array, "b l d"] | None,
        train: bool,
    ) -> Float[Array, "b *spatial k"]:
        """Apply the block."""
        h = res_block(self.config, self.config.channels_at(self.level), self.dtype, "resnet")(h, embedding, train=train)
        if not self.attention:
            return h
        attend = attention_block(self.config, self.level, self.dtype, "attention")
        return attend(h) if self.config.attention == "self" else attend(h, context)


class Resample(nn.Module):
    """The change of resolution between two levels: a plain convolution, or inside a residual block."""

    config: UNetConfig
    direction: Literal["up", "down"]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, h: Float[Array, "b *spatial c"], embedding: Float[Array, "b e"], train: bool
    ) -> Float[Array, "b *resampled c"]:
        """Double or halve the resolution."""
        if self.config.resample_with_res_blocks:
            block = res_block(self.config, h.shape[-1], self.dtype, "resnet", self.direction)
            return block(h, embedding, train=train)
        if self.direction == "down":
            return Downsample(symmetric=True, dtype=self.dtype, name="downsample")(h)
        return Upsample(self.dtype, name="upsample")(h)


class DownLevel(nn.Module):
    """The blocks of one resolution on the way down; returns every step for the skip connections."""

    config: UNetConfig
    level: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *spatial c"],
        embedding: Float[Array, "b e"],
        context: Float[Array, "b l d"] | None,
        train: bool,
    ) -> list[Float[Array, "b ..."]]:
        """Apply the level."""
        steps = []
        for i in range(self.config.num_res_blocks):
            attention = self.level in self.config.attention_levels
            h = Block(self.config, self.level, attention, self.dtype, name=f"block_{i}")(h, embedding, context, train)
            steps.append(h)
        if self.level < len(self.config.channel_mult) - 1:
            steps.append(Resample(self.config, "down", self.dtype, name="resample")(h, embedding, train))
        return steps


class UpLevel(nn.Module):
    """The blocks of one resolution on the way up; takes its skip connections off the end of `steps`."""

    config: UNetConfig
    level: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *spatial c"],
        steps: list[Float[Array, "b ..."]],
        embedding: Float[Array, "b e"],
        context: Float[Array, "b l d"] | None,
        train: bool,
    ) -> Float[Array, "b *resampled k"]:
        """Apply the level to `h`; `steps` holds one tensor for each of its blocks, last first."""
        for i in range(self.config.num_res_blocks + 1):
            attention = self.level in self.config.attention_levels
            h = jnp.concatenate([h, steps[-1 - i]], axis=-1)
            h = Block(self.config, self.level, attention, self.dtype, name=f"block_{i}")(h, embedding, context, train)
        if self.level > 0:
            h = Resample(self.config, "up", self.dtype, name="resample")(h, embedding, train)
        return h


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    config: UNetConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *spatial c"],
        embedding: Float[Array, "b e"],
        context: Float[Array, "b l d"] | None,
        train: bool,
    ) -> Float[Array, "b *spatial c"]:
        """Apply the middle."""
        lowest = len(self.config.channel_mult) - 1
        h = Block(self.config, lowest, True, self.dtype, name="block_0")(h, embedding, context, train)
        return Block(self.config, lowest, False, self.dtype, name="block_1")(h, embedding, context, train)


class UNet(nn.Module):
    """Noisy latent, time and conditions to a prediction of the latent's shape.

    Conditions reach it three ways: `context` tokens by cross-attention, `class_labels` by an embedding added to the
    time embedding (when `config.num_classes` is set), and `concat` maps as further input channels.
    """

    config: UNetConfig
    out_channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        zt: Float[Array, "b *spatial c"],
        t: Int[Array, " b"] | Float[Array, " b"],
        context: Float[Array, "b l d"] | None = None,
        class_labels: Int[Array, " b"] | None = None,
        concat: Float[Array, "b *spatial k"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b *spatial o"]:
        """Predict in float32; every spatial size must be divisible by 2 for each level after the first."""
        config = self.config
        h = zt if concat is None else jnp.concatenate([zt, concat.astype(zt.dtype)], axis=-1)
        context = None if context is None else context.astype(self.dtype)
        embedding = self._embed(t, class_labels)
        h = Conv(config.base_channels, dtype=self.dtype, name="conv_in")(h.astype(self.dtype))
        steps = [h]
        for level in range(len(config.channel_mult)):
            steps += DownLevel(config, level, self.dtype, name=f"down_{level}")(steps[-1], embedding, context, train)
        h = Middle(config, self.dtype, name="mid")(steps[-1], embedding, context, train)
        for level in reversed(range(len(config.channel_mult))):
            keep = len(steps) - (config.num_res_blocks + 1)
            up = UpLevel(config, level, self.dtype, name=f"up_{level}")
            h, steps = up(h, steps[keep:], embedding, context, train), steps[:keep]
        h = jax.nn.silu(GroupNorm(config.num_groups, dtype=self.dtype, name="norm_out")(h))
        return Conv(self.out_channels, zero_init=True, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)

    def _embed(
        self, t: Int[Array, " b"] | Float[Array, " b"], class_labels: Int[Array, " b"] | None
    ) -> Float[Array, "b e"]:
        embedding = TimeEmbedding(self.config.base_channels, self.dtype, name="time")(t)
        if self.config.num_classes is None:
            return embedding
        table = nn.Embed(self.config.num_classes, embedding.shape[-1], dtype=self.dtype, name="class_embedding")
        return embedding + table(class_labels)
