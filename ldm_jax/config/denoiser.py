"""The denoising network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ldm_jax.config.checks import (
    nearest_divisor,
    require,
    require_fraction,
    require_layers,
    require_not_negative,
    require_positive,
    require_positive_value,
)
from ldm_jax.config.levels import check_levels

Place: TypeAlias = Literal["down", "mid", "up"]
"""Where a block of the U-Net stands: on the way down, in the middle or on the way up."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The denoising U-Net of LDM and Stable Diffusion."""

    base_channels: int = 128
    """Channels of the first level."""
    channel_mult: tuple[int | float, ...] = (1, 2, 4)
    """Channels of each level as multiples of base_channels; every level after the first halves the resolution."""
    num_res_blocks: int | tuple[int, ...] = 2
    """Residual blocks on the way down, one number or one for each level; one more on the way up."""
    attention_levels: tuple[int, ...] = (1, 2)
    """Levels (indices into channel_mult) with attention after each residual block."""
    up_attention_levels: tuple[int, ...] | None = None
    """The same on the way up, where it differs from the way down; None takes attention_levels."""
    attention: Literal["self", "transformer"] = "transformer"
    """`self`: plain self-attention; `transformer`: spatial transformer with cross-attention to the context."""
    transformer_depth: int | tuple[int, ...] = 1
    """Transformer blocks in each spatial transformer, one number or one for each level."""
    num_heads: int | tuple[int, ...] | None = None
    """Attention heads, one number or one for each level; give this or num_head_channels."""
    num_head_channels: int | None = 32
    """Channels of an attention head; give this or num_heads."""
    mid_res_blocks: Literal[0, 1, 2] = 2
    """Residual blocks of the middle."""
    mid_attention: bool = True
    """Attention between the two residual blocks of the middle."""
    mid_attention_groups: int | None = None
    """Groups of the normalisation before the middle's attention (attention=self); None takes num_groups, 0 has none."""
    num_heads_up: int | tuple[int, ...] | None = None
    """Attention heads on the way up where they are not num_heads (the original's num_heads_upsample)."""
    num_attention_blocks: tuple[int, ...] | None = None
    """For each level, the residual blocks that attention follows, counted from the first on either way; None is all."""
    mid_transformer_depth: int | None = None
    """Transformer blocks of the middle; None is as many as the last level has."""
    cross_attention_only_levels: tuple[int, ...] = ()
    """Levels whose transformer blocks look at the context in their first attention too (SD's x4 upscaler)."""
    mid_cross_attention_only: bool = False
    """Whether those of the middle do."""
    num_classes: int | None = None
    """Classes whose embedding is added to the time embedding, besides or instead of cross-attention: the entries of
    the class conditioning; None adds none."""
    concat_channels: int = 0
    """Channels concatenated to the noisy latent: a label map, a small picture, a masked picture and its mask."""
    vector_dim: int | None = None
    """Width of a vector condition that two dense layers add to the time embedding (SDXL's pooled text and sizes)."""
    linear_projection: bool = False
    """Project into and out of a spatial transformer by a dense layer (SD 2) instead of a 1x1 convolution (SD 1)."""
    scale_shift_norm: bool = False
    """Let the time embedding scale and shift the normalised activations instead of adding to them."""
    resample_with_res_blocks: bool | tuple[bool, ...] = False
    """Change resolution inside residual blocks (resblock_updown) instead of by a plain convolution; one choice, or one
    for each change on the way down and then for each on the way up, both from the highest resolution."""
    symmetric_padding: bool = True
    """Pad a plain convolution that halves the resolution on both sides (LDM) or only behind the end (Ho et al.)."""
    dropout: float = 0.0
    """Dropout rate inside residual blocks."""
    num_groups: int = 32
    """Groups of the group normalisation."""
    norm_epsilon: float = 1e-5
    """Added to the variance by the group normalisation."""
    time_frequencies: Literal["half", "half_minus_one"] = "half"
    """Number by which the exponents of the time embedding's frequencies are divided: h of its h sines, or h - 1."""
    time_order: Literal["cos_sin", "sin_cos"] = "cos_sin"
    """Order of cosines and sines in the time embedding: LDM's, or that of Ho et al. 2020."""
    time_embedding_dim: int | None = None
    """Width of the embedding of time, class and vector; None takes four times base_channels."""
    center_input: bool = False
    """Bring an input in [0, 1] to [-1, 1] first."""
    num_codebook_ids: int | None = None
    """Predict the logits of so many codebook entries instead of a latent (the original's n_embed)."""
    spatial_dims: Literal[1, 2, 3] = 2
    """1 for sequences, 2 for images, 3 for volumes."""

    def __post_init__(self) -> None:
        require_positive(self, "base_channels", "num_groups", "norm_epsilon")
        for name in ("num_classes", "vector_dim", "num_codebook_ids", "time_embedding_dim", "mid_transformer_depth"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        require_not_negative(self, "concat_channels")
        require_fraction(self, "dropout")
        require(
            (self.num_heads is None) != (self.num_head_channels is None),
            f"UNetConfig.num_heads={self.num_heads} and UNetConfig.num_head_channels={self.num_head_channels}: "
            "give exactly one of them and set the other to None",
        )
        require(
            self.num_heads_up is None or self.num_heads is not None,
            f"UNetConfig.num_heads_up={self.num_heads_up} needs num_heads; with num_head_channels="
            f"{self.num_head_channels} set it to None",
        )
        for name in ("num_heads", "num_heads_up", "num_attention_blocks", "transformer_depth", "num_res_blocks"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                require(
                    len(value) == len(self.channel_mult),
                    f"UNetConfig.{name}={value} has {len(value)} entries for {len(self.channel_mult)} levels; "
                    "give one number, or one for each entry of channel_mult",
                )
        check_levels(self)
        lowest = len(self.channel_mult) - 1
        for level in range(lowest + 1):
            require_layers(f"UNetConfig.num_res_blocks of level {level}", self.res_blocks_at(level))
        self._check_middle()
        choices = self.resample_with_res_blocks
        require(
            isinstance(choices, bool) or len(choices) == 2 * lowest,
            f"UNetConfig.resample_with_res_blocks={choices} is not one choice for each of the {2 * lowest} changes of "
            "resolution; give one for each, or one for all",
        )
        for level in self.attention_levels:
            self._check_attention(level, "down")
        for level in self.up_attention_levels or ():
            self._check_attention(level, "up")
        if self.mid_attention:
            self._check_attention(lowest, "mid")

    def _check_attention(self, level: int, place: Place) -> None:
        self._check_heads(level)
        require_layers(f"UNetConfig.transformer_depth of level {level}", self.depth_at(level, place))

    def _check_middle(self) -> None:
        require(
            self.mid_res_blocks == 2 or not self.mid_attention,
            f"UNetConfig.mid_res_blocks={self.mid_res_blocks} leaves no place for mid_attention=True; use 2, or "
            "mid_attention=False",
        )
        groups, channels = self.mid_attention_groups, self.channels_at(-1)
        if groups is not None and groups != 0:
            require_positive(self, "mid_attention_groups")
            require(
                channels % groups == 0,
                f"UNetConfig.mid_attention_groups={groups} does not divide the {channels} channels of the middle; "
                f"nearest that does: {nearest_divisor(channels, groups)}",
            )
        require(
            groups is None or self.attention == "self",
            f"UNetConfig.mid_attention_groups={groups} needs attention=self: a spatial transformer has num_groups",
        )

    def _check_heads(self, level: int) -> None:
        channels = self.channels_at(level)
        if self.num_head_channels is not None:
            values = {"num_head_channels": self.num_head_channels}
        else:
            values = {"num_heads": self.heads_at(level)}
        if self.num_heads_up is not None and level in self.attention_levels:
            values["num_heads_up"] = self.heads_at(level, "up")
        for name, value in values.items():
            require_positive_value(f"UNetConfig.{name}", value)
            require(
                channels % value == 0,
                f"UNetConfig.{name}={value} does not divide the {channels} channels of level {level}; "
                f"nearest that does: {nearest_divisor(channels, value)}",
            )

    def channels_at(self, level: int) -> int:
        """Channels of a level."""
        return round(self.base_channels * self.channel_mult[level])

    def res_blocks_at(self, level: int) -> int:
        """Residual blocks of a level on the way down."""
        return self.num_res_blocks[level] if isinstance(self.num_res_blocks, tuple) else self.num_res_blocks

    def attention_at(self, level: int, place: Place, index: int) -> bool:
        """Whether attention follows a residual block, counted from 0 in its level and on its way."""
        if place == "mid":
            return self.mid_attention and index == 0
        followed = self.num_attention_blocks is None or index < self.num_attention_blocks[level]
        up = self.attention_levels if self.up_attention_levels is None else self.up_attention_levels
        return level in (up if place == "up" else self.attention_levels) and followed

    def attention_groups_at(self, place: Place) -> int:
        """Groups of the normalisation before attention; 0 is none."""
        of_middle = place == "mid" and self.mid_attention_groups is not None
        return self.mid_attention_groups or 0 if of_middle else self.num_groups

    def heads_at(self, level: int, place: Place = "down") -> int:
        """Attention heads of a level."""
        if self.num_head_channels is not None:
            return self.channels_at(level) // self.num_head_channels
        heads = self.num_heads_up if place == "up" and self.num_heads_up is not None else self.num_heads
        assert heads is not None  # __post_init__ has checked it
        return heads[level] if isinstance(heads, tuple) else heads

    def depth_at(self, level: int, place: Place = "down") -> int:
        """Transformer blocks in each spatial transformer of a level."""
        if place == "mid" and self.mid_transformer_depth is not None:
            return self.mid_transformer_depth
        return self.transformer_depth[level] if isinstance(self.transformer_depth, tuple) else self.transformer_depth

    def resamples_in_res_block(self, direction: Literal["down", "up"], level: int) -> bool:
        """Whether the resolution changes inside a residual block behind the blocks of a level."""
        if not isinstance(self.resample_with_res_blocks, tuple):
            return self.resample_with_res_blocks
        # the way up leaves levels 1, 2, ...
        changes = len(self.channel_mult) - 1
        return self.resample_with_res_blocks[level if direction == "down" else changes + level - 1]

    def cross_attention_only_at(self, level: int, place: Place) -> bool:
        """Whether the first attention of transformer blocks looks at the context too."""
        return self.mid_cross_attention_only if place == "mid" else level in self.cross_attention_only_levels
