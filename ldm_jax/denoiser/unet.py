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

from ldm_jax.config import Place, Remat, UNetConfig
from ldm_jax.nn.attention import SelfAttentionBlock, SpatialTransformer
from ldm_jax.nn.compute import Compute
from ldm_jax.nn.conv import Conv
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel
from ldm_jax.nn.embeddings import VectorEmbedding, sinusoidal_embedding
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
        config.norm_epsilon,
        config.dropout,
        scale_shift_norm=config.scale_shift_norm,
        resample=resample,
        zero_init=True,
        dtype=dtype,
        name=name,
    )


def attention_block(config: UNetConfig, level: int, place: Place, compute: Compute, name: str) -> nn.Module:
    """The attention of a level: plain self-attention, or a spatial transformer that also sees the context."""
    heads, groups = config.heads_at(level, place), config.attention_groups_at(place)
    if config.attention == "self":
        return compute.part(SelfAttentionBlock, "attention")(
            heads,
            groups,
            config.norm_epsilon,
            zero_init=True,
            dtype=compute.dtype,
            kernel=compute.kernel,
            name=name,
        )
    return compute.part(SpatialTransformer, "attention")(
        heads,
        config.depth_at(level, place),
        config.linear_projection,
        config.cross_attention_only_at(level, place),
        groups,
        compute.dtype,
        compute.kernel,
        name=name,
    )


class Block(nn.Module):
    """A residual block, then attention where the configuration has it."""

    config: UNetConfig
    level: int
    place: Place
    index: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *spatial c"],
        embedding: Float[Array, "b e"],
        context: Float[Array, "b l d"] | None,
        train: bool,
    ) -> Float[Array, "b *spatial k"]:
        """Apply the block."""
        channels = self.config.channels_at(self.level)
        h = res_block(self.config, channels, self.compute.dtype, "resnet")(h, embedding, train=train)
        if not self.config.attention_at(self.level, self.place, self.index):
            return h
        attend = attention_block(self.config, self.level, self.place, self.compute, "attention")
        return attend(h) if self.config.attention == "self" else attend(h, context)


def make_block(config: UNetConfig, level: int, place: Place, index: int, compute: Compute) -> Block:
    """One of the blocks of a level or of the middle."""
    return compute.part(Block, "block", static=(4,))(config, level, place, index, compute, name=f"block_{index}")


class Resample(nn.Module):
    """The change of resolution behind a level: a plain convolution, or inside a residual block."""

    config: UNetConfig
    direction: Literal["up", "down"]
    level: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *spatial c"],
        embedding: Float[Array, "b e"],
        train: bool,
        size: tuple[int, ...] | None = None,
    ) -> Float[Array, "b *resampled c"]:
        """Double or halve the resolution; a plain way up can end at another `size`, for one that was odd before."""
        if self.config.resamples_in_res_block(self.direction, self.level):
            block = res_block(self.config, h.shape[-1], self.compute.dtype, "resnet", self.direction)
            return block(h, embedding, train=train)
        if self.direction == "down":
            return Downsample(symmetric=self.config.symmetric_padding, dtype=self.compute.dtype, name="downsample")(h)
        return Upsample(self.compute.dtype, name="upsample")(h, size)


class DownLevel(nn.Module):
    """The blocks of one resolution on the way down; returns every step for the skip connections."""

    config: UNetConfig
    level: int
    compute: Compute = Compute()

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
        for i in range(self.config.res_blocks_at(self.level)):
            h = make_block(self.config, self.level, "down", i, self.compute)(h, embedding, context, train)
            steps.append(h)
        if self.level < len(self.config.channel_mult) - 1:
            resample = Resample(self.config, "down", self.level, self.compute, name="resample")
            steps.append(resample(h, embedding, train))
        return steps


class UpLevel(nn.Module):
    """The blocks of one resolution on the way up; takes its skip connections off the end of `steps`."""

    config: UNetConfig
    level: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b *spatial c"],
        steps: list[Float[Array, "b ..."]],
        embedding: Float[Array, "b e"],
        context: Float[Array, "b l d"] | None,
        train: bool,
        size: tuple[int, ...],
    ) -> Float[Array, "b *resampled k"]:
        """Apply the level to `h`; `steps` holds one tensor for each of its blocks, last first; `size` is the next's."""
        for i in range(self.config.res_blocks_at(self.level) + 1):
            h = jnp.concatenate([h, steps[-1 - i]], axis=-1)
            h = make_block(self.config, self.level, "up", i, self.compute)(h, embedding, context, train)
        if self.level > 0:
            h = Resample(self.config, "up", self.level, self.compute, name="resample")(h, embedding, train, size)
        return h


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution; or fewer of them."""

    config: UNetConfig
    compute: Compute = Compute()

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
        for i in range(self.config.mid_res_blocks):
            h = make_block(self.config, lowest, "mid", i, self.compute)(h, embedding, context, train)
        return h


class UNet(nn.Module):
    """Noisy latent, time and conditions to a prediction of the latent's shape.

    Conditions reach it four ways: `context` tokens by cross-attention, `class_labels` and a `vector` by an embedding
    added to that of the time (labels need `config.num_classes`), `concat` maps as further channels.
    """

    config: UNetConfig
    out_channels: int
    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self,
        zt: Float[Array, "b *spatial c"],
        t: Int[Array, " b"] | Float[Array, " b"],
        context: Float[Array, "b l d"] | None = None,
        class_labels: Int[Array, " b"] | None = None,
        concat: Float[Array, "b *spatial k"] | None = None,
        vector: Float[Array, "b v"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b *spatial o"]:
        """Predict in float32, for any spatial size (where residual blocks resample, one that can be halved)."""
        config, compute = self.config, Compute(self.dtype, self.kernel, self.remat)
        h = zt if concat is None else jnp.concatenate([zt, concat.astype(zt.dtype)], axis=-1)
        h = 2 * h - 1 if config.center_input else h
        context = None if context is None else context.astype(self.dtype)
        embedding = self._embed(t, class_labels, vector)
        h = Conv(config.base_channels, dtype=self.dtype, name="conv_in")(h.astype(self.dtype))
        steps = [h]
        for level in range(len(config.channel_mult)):
            down = compute.part(DownLevel, "level", static=(4,))(config, level, compute, name=f"down_{level}")
            steps += down(steps[-1], embedding, context, train)
        middle = compute.part(Middle, "level", static=(4,))(config, compute, name="mid")
        h = middle(steps[-1], embedding, context, train)
        for level in reversed(range(len(config.channel_mult))):
            keep = len(steps) - (config.res_blocks_at(level) + 1)
            up = compute.part(UpLevel, "level", static=(5, 6))(config, level, compute, name=f"up_{level}")
            h = up(h, steps[keep:], embedding, context, train, steps[keep - 1].shape[1:-1])
            steps = steps[:keep]
        return self._output(h)

    def _embed(
        self,
        t: Int[Array, " b"] | Float[Array, " b"],
        class_labels: Int[Array, " b"] | None,
        vector: Float[Array, "b v"] | None,
    ) -> Float[Array, "b e"]:
        config, width = self.config, self.config.time_embedding_dim or 4 * self.config.base_channels
        sinusoid = sinusoidal_embedding(t, config.base_channels, config.time_frequencies, config.time_order)
        embedding = VectorEmbedding(width, self.dtype, name="time")(sinusoid)
        if config.num_classes is not None:
            embedding += nn.Embed(config.num_classes, width, name="class_embedding")(class_labels).astype(self.dtype)
        if vector is not None:
            embedding += VectorEmbedding(width, self.dtype, name="vector")(vector)
        return embedding

    def _output(self, h: Float[Array, "b *spatial c"]) -> Float[Array, "b *spatial o"]:
        def norm(name: str) -> GroupNorm:
            return GroupNorm(self.config.num_groups, self.config.norm_epsilon, self.dtype, name=name)

        out = Conv(self.out_channels, zero_init=True, dtype=self.dtype, name="conv_out")(
            jax.nn.silu(norm("norm_out")(h))
        )
        if self.config.num_codebook_ids is not None:  # the original keeps both heads, and uses this one
            out = Conv(self.config.num_codebook_ids, 1, dtype=self.dtype, name="conv_ids")(norm("norm_ids")(h))
        return out.astype(jnp.float32)
