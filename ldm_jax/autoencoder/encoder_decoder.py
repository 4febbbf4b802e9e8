"""The encoder of a first stage and its mirror image, the decoder (LDM, appendix G; taming-transformers).

Both are stacks of residual blocks with a change of resolution by 2 between levels, and a middle of two residual
blocks around self-attention. With `patch_size` p the picture enters as p-sided blocks laid out in channels, so that
every level works at 1/p of the resolution: the full-resolution convolutions, most of the cost, are gone.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.autoencoder.strips import InStrips
from ldm_jax.config import AutoencoderConfig, Remat
from ldm_jax.nn.attention import SelfAttentionBlock
from ldm_jax.nn.compute import Compute
from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel
from ldm_jax.nn.norm import GroupNorm
from ldm_jax.nn.resample import Downsample, Upsample, depth_to_space, space_to_depth
from ldm_jax.nn.resnet import ResBlock

NORM_EPSILON = 1e-6  # of every normalisation in the first stages of LDM


class Block(nn.Module):
    """A residual block, then self-attention where the level has it."""

    config: AutoencoderConfig
    channels: int
    attention: bool
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"], train: bool) -> Float[Array, "b *spatial d"]:
        """Apply the block."""
        groups, dropout, compute = self.config.num_groups, self.config.dropout, self.compute
        x = ResBlock(self.channels, groups, NORM_EPSILON, dropout, dtype=compute.dtype, name="resnet")(x, train=train)
        if not self.attention:
            return x
        attend = compute.part(SelfAttentionBlock, "attention")
        return attend(1, groups, NORM_EPSILON, dtype=compute.dtype, kernel=compute.kernel, name="attention")(x)


def make_block(config: AutoencoderConfig, channels: int, attention: bool, compute: Compute, index: int) -> Block:
    """One of the blocks of a level or of the middle."""
    return compute.part(Block, "block", static=(2,))(config, channels, attention, compute, name=f"block_{index}")


class Level(nn.Module):
    """The blocks of one resolution, with the change of resolution that enters or leaves it."""

    config: AutoencoderConfig
    level: int
    num_blocks: int
    attention: bool
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"], train: bool) -> Float[Array, "b *spatial d"]:
        """Apply the blocks."""
        channels = self.config.channels_at(self.level)
        for i in range(self.num_blocks):
            x = make_block(self.config, channels, self.attention, self.compute, i)(x, train)
        return x


class Middle(nn.Module):
    """Residual block, self-attention, residual block at the lowest resolution."""

    config: AutoencoderConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b *spatial c"], train: bool) -> Float[Array, "b *spatial c"]:
        """Apply the middle."""
        x = make_block(self.config, x.shape[-1], self.config.mid_attention, self.compute, 0)(x, train)
        return make_block(self.config, x.shape[-1], False, self.compute, 1)(x, train)


def make_level(
    config: AutoencoderConfig, level: int, num_blocks: int, attention: bool, compute: Compute, name: str
) -> Level:
    """The blocks of one resolution."""
    return compute.part(Level, "level", static=(2,))(config, level, num_blocks, attention, compute, name=name)


def make_middle(config: AutoencoderConfig, compute: Compute) -> Middle:
    """What lies at the lowest resolution."""
    return compute.part(Middle, "level", static=(2,))(config, compute, name="mid")


class Encoder(nn.Module):
    """Picture to `out_channels` feature maps at 1/downsample_factor of its size."""

    config: AutoencoderConfig
    out_channels: int
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE
    remat: Remat = "none"
    strip_rows: int | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "b *spatial c"], *, train: bool = False) -> Float[Array, "b *latent z"]:
        """Encode pictures in [-1, 1], `strip_rows` rows at a time unless that is None or the layers are trained."""
        if self.strip_rows is not None and not (train or self.is_initializing()):
            in_strips = InStrips(self.config, NORM_EPSILON, self.dtype, self.kernel, self.strip_rows)
            params: Any = self.variables["params"]
            return in_strips.encode(params, image)
        config, compute = self.config, Compute(self.dtype, self.kernel, self.remat)
        h = space_to_depth(image.astype(self.dtype), config.patch_size)
        h = Conv(config.base_channels, dtype=self.dtype, name="conv_in")(h)
        for level in range(len(config.channel_mult)):
            if level > 0:
                h = Downsample(symmetric=False, dtype=self.dtype, name=f"downsample_{level - 1}")(h)
            attention = level in config.attention_levels
            h = make_level(config, level, config.num_res_blocks, attention, compute, f"down_{level}")(h, train)
        h = make_middle(config, compute)(h, train)
        h = jax.nn.silu(GroupNorm(config.num_groups, NORM_EPSILON, self.dtype, name="norm_out")(h))
        return Conv(self.out_channels, dtype=self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """Latent to picture: the encoder's mirror image (but for attention, if so told), with one more block a level."""

    config: AutoencoderConfig
    image_channels: int
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE
    remat: Remat = "none"
    strip_rows: int | None = None

    @nn.compact
    def __call__(self, z: Float[Array, "b *latent z"], *, train: bool = False) -> Float[Array, "b *spatial c"]:
        """Decode latents into pictures around [-1, 1], in float32; `strip_rows` as for the encoder."""
        if self.strip_rows is not None and not (train or self.is_initializing()):
            in_strips = InStrips(self.config, NORM_EPSILON, self.dtype, self.kernel, self.strip_rows)
            params: Any = self.variables["params"]
            return in_strips.decode(params, z)
        config, dims, compute = self.config, self.config.spatial_dims, Compute(self.dtype, self.kernel, self.remat)
        lowest = len(config.channel_mult) - 1
        h = Conv(config.channels_at(lowest), dtype=self.dtype, name="conv_in")(z.astype(self.dtype))
        h = make_middle(config, compute)(h, train)
        levels, blocks = config.decoder_attention_levels, config.num_res_blocks + 1
        for level in reversed(range(lowest + 1)):
            attention = level in (config.attention_levels if levels is None else levels)
            h = make_level(config, level, blocks, attention, compute, f"up_{level}")(h, train)
            if level > 0:
                h = Upsample(self.dtype, name=f"upsample_{level}")(h)
        h = jax.nn.silu(GroupNorm(config.num_groups, NORM_EPSILON, self.dtype, name="norm_out")(h))
        h = Conv(self.image_channels * config.patch_size**dims, dtype=self.dtype, name="conv_out")(h)
        return depth_to_space(h, config.patch_size).astype(jnp.float32)
