"""Every configuration dataclass, and how an experiment is loaded by name, tuned by flags, saved and restored.

A configuration is a tree of frozen, keyword-only dataclasses. A field's docstring is its help text on the command
line, its type decides what is accepted, and `__post_init__` checks what types cannot: each message names the field,
its value and the nearest value that works. Nothing here imports jax, so `--help` is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import json
import math
import traceback
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

from ldm_jax.errors import UserError

# A field that may differ when a run folder is continued: it changes how the work is done, not what comes out.
_HOW = {"identity": False}

LARGEST = 2**31 - 1
"""Largest whole number of a configuration, seeds included: sizes, steps and samples are counted in 32 bits."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        _require_positive_value(f"{type(config).__name__}.{name}", getattr(config, name))


def _require_positive_value(name: str, value: int | float) -> None:
    _require_number(name, value)
    _require(value > 0, f"{name}={value} must be greater than 0")


def _require_not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require_number(f"{type(config).__name__}.{name}", value)
        _require(value >= 0, f"{type(config).__name__}.{name}={value} must not be negative")


def _require_fraction(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0.0 <= value <= 1.0, f"{type(config).__name__}.{name}={value} must lie between 0 and 1")


def _require_number(name: str, value: int | float) -> None:
    """What every number has to be: nan passes many a comparison, inf nearly all, and arrays count in 32 bits."""
    _require(abs(value) < math.inf, f"{name}={value} must be a finite number")
    _require(not isinstance(value, int) or abs(value) <= LARGEST, f"{name}={value} must be at most {LARGEST}")


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OpenMoji:
    """OpenMoji pictograms with their Unicode captions (needs the `demo` extra)."""

    groups: tuple[str, ...] = ()
    """Unicode groups to keep, such as food-drink; empty keeps all but `component`."""
    max_tags: int = 3
    """Largest number of keywords that a training caption may carry behind its label; the number is drawn each step."""

    def __post_init__(self) -> None:
        _require_not_negative(self, "max_tags")


@dataclass(frozen=True, kw_only=True)
class FashionMnist:
    """Fashion-MNIST from its four idx files (Debian package dataset-fashion-mnist)."""

    directory: str = "/usr/share/datasets/fashion-mnist"
    """Folder of the idx files, gzipped or not."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A folder of pictures: class sub-folders, captions from a .txt beside a picture, or a metadata.jsonl."""

    directory: str = "."
    """The folder; `train/` and `test/` inside it are taken as the splits where they exist."""
    test_fraction: float = 0.05
    """Share held out for the test split, chosen by a hash of the file name, where there is no `test/` folder."""

    def __post_init__(self) -> None:
        _require_fraction(self, "test_fraction")


@dataclass(frozen=True, kw_only=True)
class PreparedTfds:
    """Any TFDS data set that is already prepared on this machine as array_record."""

    name: str = ""
    """Name (`cifar10`), name with configuration (`name/config:1.0.0`), or the folder of a prepared version."""
    directory: str | None = None
    """TFDS data_dir; its own default when not given."""
    train_split: str = "train"
    """Split trained on, in TFDS slicing syntax."""
    test_split: str = "test"
    """Held-out split, in TFDS slicing syntax."""
    image_key: str = "image"
    """Feature that holds the picture."""
    label_key: str = "label"
    """Feature that holds the class, if any."""
    caption_key: str = "caption"
    """Feature that holds the caption, if any."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Generated coloured shapes with captions and classes: no files needed, for tests and first tries."""

    num_examples: int = 600
    """Pictures in the training split; the test split has a tenth of it."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_examples")


Source: TypeAlias = OpenMoji | FashionMnist | ImageFolder | PreparedTfds | Shapes


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pictures, and what is done to them before the model sees them."""

    source: Source = field(default_factory=Shapes)
    image_size: int = 32
    """Height and width in pixels after resizing the shorter side and cropping the centre."""
    image_channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    horizontal_flip: bool = False
    """Show each picture mirrored half of the time."""
    cache_latents: bool = True
    """Encode the whole data set once before the diffusion stage (small sets); else encode each batch."""
    cache_dir: str | None = field(default=None, metadata=_HOW)
    """Where prepared data sets are kept; default: ldm_jax/data in the user's cache folder."""
    num_threads: int = field(default=2, metadata=_HOW)
    """Reader threads of the input pipeline (`--data.num-threads 0` reads in the main thread)."""

    def __post_init__(self) -> None:
        _require_positive(self, "image_size")
        _require_not_negative(self, "num_threads")
        _require(self.num_threads <= 256, f"DataConfig.num_threads={self.num_threads} must be at most 256")


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What both autoencoders share: the encoder and its mirror image, the decoder (LDM, appendix G)."""

    base_channels: int = 128
    """Channels of the first level."""
    channel_mult: tuple[int | float, ...] = (1, 2, 4)
    """Channels of each level as multiples of base_channels; every level after the first halves the resolution."""
    num_res_blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention_levels: tuple[int, ...] = ()
    """Levels (indices into channel_mult) whose residual blocks are each followed by self-attention."""
    decoder_attention_levels: tuple[int, ...] | None = None
    """The same of the decoder, where it is no mirror image; None takes attention_levels."""
    mid_attention: bool = True
    """Self-attention between the two residual blocks of the lowest level."""
    latent_channels: int = 4
    """Channels of the latent z."""
    z_channels: int | None = None
    """Channels that the encoder puts out and the decoder takes in, where they differ from those of the latent."""
    quant_conv: bool = True
    """A 1x1 convolution behind the encoder and one before the decoder, as the original has them."""
    post_quant_conv: bool | None = None
    """The one before the decoder alone; None takes quant_conv."""
    patch_size: int = 1
    """Space-to-depth factor before the first convolution: levels then work at 1/patch_size of the resolution."""
    num_groups: int = 32
    """Groups of the group normalisation."""
    dropout: float = 0.0
    """Dropout rate inside the residual blocks."""
    spatial_dims: Literal[1, 2, 3] = 2
    """1 for sequences, 2 for images, 3 for volumes."""

    def __post_init__(self) -> None:
        _require_positive(self, "base_channels", "num_res_blocks", "latent_channels", "patch_size", "num_groups")
        _require_fraction(self, "dropout")
        if self.z_channels is not None:
            _require_positive(self, "z_channels")
            _require(
                (self.quant_conv and self.has_post_quant_conv) or self.z_channels == self.latent_channels,
                f"{type(self).__name__}.z_channels={self.z_channels} differs from latent_channels="
                f"{self.latent_channels}, which needs both convolutions around the latent: quant_conv=True, "
                "post_quant_conv=None",
            )
        _check_levels(self)

    @property
    def has_post_quant_conv(self) -> bool:
        """Whether there is a 1x1 convolution before the decoder."""
        return self.quant_conv if self.post_quant_conv is None else self.post_quant_conv

    def channels_at(self, level: int) -> int:
        """Channels of a level."""
        return round(self.base_channels * self.channel_mult[level])

    @property
    def downsample_factor(self) -> int:
        """Ratio of picture size to latent size along each axis."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(AutoencoderConfig):
    """Autoencoder with a diagonal Gaussian posterior, held near a standard normal by a small KL weight."""

    kl_weight: float = 1e-6
    """Weight of the KL term (nats per image, as LDM counts) against the reconstruction loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_not_negative(self, "kl_weight")


@dataclass(frozen=True, kw_only=True)
class AutoencoderVQConfig(AutoencoderConfig):
    """Autoencoder with a codebook; the diffusion model works on z before quantisation, as in LDM."""

    codebook_size: int = 8192
    """Number of codes."""
    codebook_weight: float = 1.0
    """Weight of the codebook and commitment terms against the reconstruction loss."""
    commitment_cost: float = 0.25
    """Weight of the commitment term inside the quantiser (beta of VQ-VAE)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "codebook_size")
        _require_not_negative(self, "codebook_weight", "commitment_cost")


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
        _require_positive(self, "base_channels", "num_groups", "norm_epsilon")
        for name in ("num_classes", "vector_dim", "num_codebook_ids", "time_embedding_dim", "mid_transformer_depth"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        _require_not_negative(self, "concat_channels")
        _require_fraction(self, "dropout")
        _require(
            (self.num_heads is None) != (self.num_head_channels is None),
            f"UNetConfig.num_heads={self.num_heads} and UNetConfig.num_head_channels={self.num_head_channels}: "
            "give exactly one of them and set the other to None",
        )
        _require(
            self.num_heads_up is None or self.num_heads is not None,
            f"UNetConfig.num_heads_up={self.num_heads_up} needs num_heads; with num_head_channels="
            f"{self.num_head_channels} set it to None",
        )
        for name in ("num_heads", "num_heads_up", "num_attention_blocks", "transformer_depth", "num_res_blocks"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                _require(
                    len(value) == len(self.channel_mult),
                    f"UNetConfig.{name}={value} has {len(value)} entries for {len(self.channel_mult)} levels; "
                    "give one number, or one for each entry of channel_mult",
                )
        _check_levels(self)
        lowest = len(self.channel_mult) - 1
        for level in range(lowest + 1):
            _require_positive_value(f"UNetConfig.num_res_blocks of level {level}", self.res_blocks_at(level))
        self._check_middle()
        choices = self.resample_with_res_blocks
        _require(
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
        _require_positive_value(f"UNetConfig.transformer_depth of level {level}", self.depth_at(level, place))

    def _check_middle(self) -> None:
        _require(
            self.mid_res_blocks == 2 or not self.mid_attention,
            f"UNetConfig.mid_res_blocks={self.mid_res_blocks} leaves no place for mid_attention=True; use 2, or "
            "mid_attention=False",
        )
        groups, channels = self.mid_attention_groups, self.channels_at(-1)
        if groups is not None and groups != 0:
            _require_positive(self, "mid_attention_groups")
            _require(
                channels % groups == 0,
                f"UNetConfig.mid_attention_groups={groups} does not divide the {channels} channels of the middle; "
                f"nearest that does: {nearest_divisor(channels, groups)}",
            )
        _require(
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
            _require_positive_value(f"UNetConfig.{name}", value)
            _require(
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


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that lies nearest to `wanted`."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return min([*small, *(number // d for d in reversed(small))], key=lambda d: abs(d - wanted))


def _check_levels(config: AutoencoderConfig | UNetConfig) -> None:
    kind, levels = type(config).__name__, len(config.channel_mult)
    _require(levels > 0, f"{kind}.channel_mult=() is empty; give at least one level, such as 1 2 4")
    names = ("attention_levels", "up_attention_levels", "decoder_attention_levels", "cross_attention_only_levels")
    for name in names:
        for level in getattr(config, name, None) or ():
            _require(
                0 <= level < levels,
                f"{kind}.{name}={getattr(config, name)} names level {level}, but channel_mult="
                f"{config.channel_mult} has levels 0 to {levels - 1}",
            )
    for level, mult in enumerate(config.channel_mult):
        _require_positive_value(f"{kind}.channel_mult entry", mult)
        channels = config.channels_at(level)
        _require_number(f"{kind}.base_channels={config.base_channels} times channel_mult entry {mult}", channels)
        _require(
            abs(channels - config.base_channels * mult) < 1e-6,
            f"{kind}.channel_mult entry {mult} times base_channels={config.base_channels} is no whole number of "
            "channels",
        )
        _require(
            channels % config.num_groups == 0,
            f"{kind}.num_groups={config.num_groups} does not divide {channels} channels "
            f"(base_channels={config.base_channels} times {mult}); nearest that does: "
            f"{nearest_divisor(channels, config.num_groups)}",
        )


@dataclass(frozen=True, kw_only=True)
class Unconditional:
    """No conditioning."""


@dataclass(frozen=True, kw_only=True)
class ClassConditioning:
    """A learned embedding of the class, given to the denoiser as one context token (LDM's ClassEmbedder)."""

    num_classes: int = 10
    """Number of classes."""
    null_class: bool = True
    """Keep one more entry for `no class`, which guidance needs; models of the original without it have no guidance."""
    context_dim: int = 128
    """Width of the embedding."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_classes", "context_dim")

    @property
    def num_entries(self) -> int:
        """Rows of the table: the classes, and `no class` where there is one."""
        return self.num_classes + self.null_class


@dataclass(frozen=True, kw_only=True)
class TextConditioning:
    """A text transformer trained jointly with the denoiser, as LDM's text-to-image model has it."""

    tokens: Literal["captions", "boxes"] = "captions"
    """What the tokens say: a caption, or the objects of a picture with their boxes (LDM's layout-to-image model)."""
    vocab_size: int = 2048
    """Entries of the tokenizer that is trained on the captions of the training split."""
    context_length: int = 16
    """Tokens of a caption, with its begin and end marks; longer ones are cut with a warning."""
    context_dim: int = 128
    """Width of the text transformer."""
    num_layers: int = 2
    """Transformer layers."""
    num_heads: int = 4
    """Attention heads."""
    num_head_channels: int | None = None
    """Channels of an attention head; None divides context_dim among the heads."""
    mlp_dim: int | None = None
    """Width inside the feed-forward layers; None takes four times context_dim."""
    dropout: float = 0.0
    """Dropout rate of the text transformer, on its embeddings and on the output of each sublayer."""
    begin_token: int = 1
    """Token before every caption."""
    end_token: int = 2
    """Token behind every caption."""
    pad_token: int = 0
    """Token that fills up the context length."""

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "context_dim", "num_heads", "num_layers")
        _check_tokens(self)
        _require_fraction(self, "dropout")
        for name in ("num_head_channels", "mlp_dim"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        _require(
            self.num_head_channels is not None or self.context_dim % self.num_heads == 0,
            f"TextConditioning.num_heads={self.num_heads} does not divide context_dim={self.context_dim}; "
            f"nearest that does: {nearest_divisor(self.context_dim, self.num_heads)}",
        )


@dataclass(frozen=True, kw_only=True)
class ClipTextConditioning:
    """CLIP's text transformer, trained elsewhere and kept as it is (Stable Diffusion)."""

    vocab_size: int = 49408
    """Entries of its tokenizer."""
    context_length: int = 77
    """Tokens of a caption, with its begin and end marks; longer ones are cut with a warning."""
    context_dim: int = 768
    """Width."""
    num_layers: int = 12
    """Transformer layers."""
    num_heads: int = 12
    """Attention heads."""
    mlp_dim: int | None = None
    """Width inside the feed-forward layers; None takes four times context_dim."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """`quick_gelu` in OpenAI's models, `gelu` in most of OpenCLIP's."""
    norm_epsilon: float = 1e-5
    """Added to the variance by the layer normalisation."""
    context_layer: Literal["last", "penultimate"] = "last"
    """Layer whose output is the context."""
    context_norm: bool = True
    """Apply the final normalisation to the context, whichever its layer (SD 1 and 2), or leave it out (SDXL)."""
    projection_dim: int | None = None
    """Width of the projected embedding of the whole caption; None has no projection."""
    pooled_at: Literal["end", "largest"] = "end"
    """Where the embedding of the whole caption is read: at the first end_token, or at the largest token id."""
    begin_token: int = 49406
    """Token before every caption."""
    end_token: int = 49407
    """Token behind every caption."""
    pad_token: int = 49407
    """Token that fills up the context length."""
    folder: str | None = field(default=None, metadata=_HOW)
    """Folder of a transformers CLIPTextModel (and of its tokenizer) whose weights are used."""
    trainable: bool = False
    """Train it with the denoiser."""

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "context_dim", "num_heads", "num_layers", "norm_epsilon")
        for name in ("mlp_dim", "projection_dim"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        _check_tokens(self)
        _require(
            self.context_dim % self.num_heads == 0,
            f"ClipTextConditioning.num_heads={self.num_heads} does not divide context_dim={self.context_dim}; "
            f"nearest that does: {nearest_divisor(self.context_dim, self.num_heads)}",
        )


@dataclass(frozen=True, kw_only=True)
class SdxlConditioning:
    """SDXL's two CLIP text transformers side by side, their pooled text, and the sizes of the picture."""

    first: ClipTextConditioning = field(
        default_factory=lambda: ClipTextConditioning(context_layer="penultimate", context_norm=False)
    )
    """CLIP ViT-L/14: the first channels of the context."""
    second: ClipTextConditioning = field(
        default_factory=lambda: ClipTextConditioning(
            context_dim=1280,
            num_layers=32,
            num_heads=20,
            activation="gelu",
            context_layer="penultimate",
            context_norm=False,
            projection_dim=1280,
            pad_token=0,
        )
    )
    """OpenCLIP ViT-bigG/14: the last channels of the context, and the pooled text."""
    size_dim: int = 256
    """Width of the sinusoidal embedding of each of the six sizes (height and width of the original, its cropped top
    and left, height and width of the target)."""
    no_prompt: Literal["zeros", "empty"] = "zeros"
    """What stands for no prompt: zeros (SDXL base), or the outputs for the empty text."""
    trainable: bool = False
    """Train both with the denoiser."""

    def __post_init__(self) -> None:
        _require_positive(self, "size_dim")
        _require(
            self.second.projection_dim is not None,
            "SdxlConditioning.second.projection_dim=None has no pooled text; use its width, 1280 in SDXL",
        )

    @property
    def context_dim(self) -> int:
        """Width of the context."""
        return self.first.context_dim + self.second.context_dim

    @property
    def vector_dim(self) -> int:
        """Width of pooled text and embedded sizes together."""
        return (self.second.projection_dim or 0) + 6 * self.size_dim


def _check_tokens(config: TextConditioning | ClipTextConditioning) -> None:
    kind = type(config).__name__
    _require_positive(config, "context_length")
    _require(
        config.context_length >= 3,
        f"{kind}.context_length={config.context_length} must be at least 3: begin, one token, end",
    )
    for name in ("begin_token", "end_token", "pad_token"):
        value = getattr(config, name)
        _require(
            0 <= value < config.vocab_size,
            f"{kind}.{name}={value} is not in the vocabulary of {config.vocab_size} entries",
        )


@dataclass(frozen=True, kw_only=True)
class SpatialConditioning:
    """A map beside the picture (label map, small or masked picture), brought to the latent's size and concatenated."""

    in_channels: int = 3
    """Channels of the map."""
    num_stages: int = 0
    """Times that the map is halved (LDM's SpatialRescaler)."""
    out_channels: int | None = None
    """Channels after a learned 1x1 convolution; None has no convolution."""

    def __post_init__(self) -> None:
        _require_positive(self, "in_channels")
        _require_not_negative(self, "num_stages")
        if self.out_channels is not None:
            _require_positive(self, "out_channels")

    @property
    def concat_channels(self) -> int:
        """Channels that the denoiser sees."""
        return self.out_channels or self.in_channels


@dataclass(frozen=True, kw_only=True)
class EmbeddingConditioning:
    """Embeddings computed elsewhere, such as those of neighbours in CLIP space, as context tokens (RDM)."""

    context_dim: int = 768
    """Width of an embedding."""
    context_length: int = 20
    """Number of embeddings."""

    def __post_init__(self) -> None:
        _require_positive(self, "context_dim", "context_length")


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """CLIP's vision transformer, trained elsewhere and kept as it is."""

    image_size: int = 224
    """Side of a picture in pixels."""
    image_channels: int = 3
    """Channels of a picture."""
    patch_size: int = 14
    """Side of a patch in pixels, which becomes one token; what is left at the edges is not seen."""
    width: int = 1024
    """Width of a token."""
    num_layers: int = 24
    """Transformer layers."""
    num_heads: int = 16
    """Attention heads."""
    mlp_dim: int | None = None
    """Width inside the feed-forward layers; None takes four times the width."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """`quick_gelu` in OpenAI's models, `gelu` in most of OpenCLIP's."""
    norm_epsilon: float = 1e-5
    """Added to the variance by the layer normalisation."""
    projection_dim: int | None = 768
    """Width of the embedding that is compared with that of a caption; None has no projection."""

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "image_channels", "patch_size", "width", "num_layers", "num_heads")
        _require_positive(self, "norm_epsilon")
        for name in ("mlp_dim", "projection_dim"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        _require(
            self.patch_size <= self.image_size,
            f"ClipVisionConfig.patch_size={self.patch_size} is larger than image_size={self.image_size}; "
            f"use at most {self.image_size}",
        )
        _require(
            self.width % self.num_heads == 0,
            f"ClipVisionConfig.num_heads={self.num_heads} does not divide width={self.width}; "
            f"nearest that does: {nearest_divisor(self.width, self.num_heads)}",
        )


Conditioning: TypeAlias = (
    Unconditional
    | ClassConditioning
    | TextConditioning
    | ClipTextConditioning
    | SdxlConditioning
    | SpatialConditioning
    | EmbeddingConditioning
)


# --- diffusion -------------------------------------------------------------------------------------------------------

PredictionType: TypeAlias = Literal["epsilon", "v", "x0", "flow"]
ScheduleKind: TypeAlias = Literal["linear", "scaled_linear", "cosine", "sqrt", "sigmoid", "exponential", "flow"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The forward process as arrays over the training timesteps."""

    kind: ScheduleKind = "scaled_linear"
    """`scaled_linear` is linear in the square root of beta (LDM, SD); `linear` is DDPM's; `cosine` is improved DDPM's;
    `sqrt` takes the square root of a line between beta_start and beta_end (the `sqrt` of the original code); `sigmoid`
    is a logistic curve between them; `exponential` lets the signal decay evenly; `flow` is the straight path of flow
    matching, alpha = 1 - sigma, with sigma = (t + 1) / T before `shift`."""
    num_train_timesteps: int = 1000
    """Number of timesteps T."""
    beta_start: float = 0.00085
    """First beta (ignored by cosine, exponential and flow)."""
    beta_end: float = 0.012
    """Last beta (ignored by cosine, exponential and flow)."""
    zero_terminal_snr: bool = False
    """Rescale so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    shift: float = 1.0
    """Time shift of `flow` towards noise, for large pictures (Esser et al. 2024: 3 at 1024 pixels); 1 is none."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_train_timesteps")
        _require(
            self.num_train_timesteps >= 2,
            f"ScheduleConfig.num_train_timesteps={self.num_train_timesteps} must be at least 2",
        )
        _require(
            0 < self.beta_start <= self.beta_end < 1,
            f"ScheduleConfig.beta_start={self.beta_start} and beta_end={self.beta_end} must satisfy "
            "0 < beta_start <= beta_end < 1",
        )
        _require_positive(self, "shift")
        _require(
            self.kind == "flow" or self.shift == 1.0,
            f"ScheduleConfig.shift={self.shift} is for kind=flow, not for kind={self.kind}; use 1",
        )
        _require(
            not (self.kind == "flow" and self.zero_terminal_snr),
            "ScheduleConfig.zero_terminal_snr=True is not for kind=flow, whose last timestep is pure noise already; "
            "use False",
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What the denoiser learns to predict, and how its errors are counted."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    prediction_type: PredictionType = "epsilon"
    """epsilon: the noise; v: alpha * epsilon - sigma * z0; x0: the clean latent; flow: epsilon - z0."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    """Distance between prediction and target."""
    huber_delta: float = 1.0
    """Where the Huber loss turns from quadratic to linear."""
    weighting: Literal["uniform", "min_snr"] = "uniform"
    """Weight of a timestep: 1, or min-SNR (Hang et al. 2023) for the prediction type in use."""
    min_snr_gamma: float = 5.0
    """Where min-SNR weighting cuts the signal-to-noise ratio."""
    cond_drop_prob: float = 0.1
    """Share of training samples whose condition is replaced by the empty one, for classifier-free guidance."""

    def __post_init__(self) -> None:
        _require_fraction(self, "cond_drop_prob")
        _require_positive(self, "min_snr_gamma", "huber_delta")
        _require(
            not (self.schedule.zero_terminal_snr and self.prediction_type == "epsilon"),
            "DiffusionConfig.prediction_type=epsilon cannot be used with schedule.zero_terminal_snr=True: at the last "
            "timestep z_t is the noise itself; use v or x0",
        )
        _require(
            not (self.schedule.kind == "flow" and self.prediction_type in ("epsilon", "v")),
            f"DiffusionConfig.prediction_type={self.prediction_type} cannot be used with schedule.kind=flow, whose "
            "last timestep is pure noise and whose alpha^2 + sigma^2 is not 1; use flow or x0",
        )


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up and decay. The learning rate is used as it is written: no scaling by batch or devices."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly, to the peak at the last of them."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls after the warm-up, until the last step."""
    final_learning_rate_ratio: float = 0.0
    """Learning rate towards which the last step falls, as a share of the peak (cosine and linear)."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on every parameter."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient to this global norm; None does not clip."""

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate", "epsilon")
        _require_fraction(self, "beta1", "beta2", "final_learning_rate_ratio")
        for name in ("beta1", "beta2"):
            _require(getattr(self, name) < 1, f"OptimizerConfig.{name}=1 never learns; use less, such as 0.9 or 0.999")
        _require_not_negative(self, "warmup_steps", "weight_decay")
        if self.max_grad_norm is not None:
            _require_positive(self, "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch and rhythm of one training stage."""

    batch_size: int = 32
    """Global batch size: pictures in one optimizer step, over all devices, micro-batches included."""
    num_steps: int = 1000
    """Optimizer steps."""
    gradient_accumulation: int = 1
    """Micro-batches in one optimizer step; divides batch_size."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the parameters."""
    ema_warmup: bool = True
    """Let the decay rise as (1 + n) / (10 + n) at step n until it reaches ema_decay, as LDM does."""
    log_every: int = field(default=20, metadata=_HOW)
    """Steps between two lines of metrics."""
    eval_every: int = field(default=200, metadata=_HOW)
    """Steps between two held-out losses."""
    sample_every: int = field(default=1000, metadata=_HOW)
    """Steps between two picture grids."""
    checkpoint_every: int = field(default=500, metadata=_HOW)
    """Steps between two checkpoints; one is also saved at the end."""
    keep_checkpoints: int = field(default=2, metadata=_HOW)
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        _require_positive(
            self,
            *("batch_size", "num_steps", "gradient_accumulation", "log_every", "eval_every", "sample_every"),
            *("checkpoint_every", "keep_checkpoints"),
        )
        _require_fraction(self, "ema_decay")
        _require(
            self.batch_size % self.gradient_accumulation == 0,
            f"TrainingConfig.gradient_accumulation={self.gradient_accumulation} does not divide batch_size="
            f"{self.batch_size}; nearest that does: {nearest_divisor(self.batch_size, self.gradient_accumulation)}",
        )


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig:
    """The autoencoder and its training."""

    autoencoder: AutoencoderKLConfig | AutoencoderVQConfig = field(default_factory=AutoencoderKLConfig)
    reconstruction_loss: Literal["l1", "l2"] = "l1"
    """Distance between a picture and its reconstruction."""
    latent_scale: Literal["global", "per_channel"] = "global"
    """How latents are brought to unit spread: one factor for all (LDM), or mean and spread of each channel."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: str | None = None
    """Folder of a finished run whose autoencoder is used instead of training one."""


SamplerName: TypeAlias = Literal[
    "ddim",
    "ddpm",
    "plms",
    "pndm",
    "euler",
    "euler_ancestral",
    "heun",
    "kdpm2",
    "kdpm2_ancestral",
    "lms",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3s",
    "unipc",
    "unipc_3",
    "deis",
    "rk4",
    "adaptive",
    "imported",
]
Spacing: TypeAlias = Literal["trailing", "leading", "linspace"]
SigmaSpacing: TypeAlias = Literal["schedule", "karras", "exponential", "beta"]
ClippingKind: TypeAlias = Literal["none", "static", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How pictures are drawn, for the grids during training and as the default of `sample.py`."""

    sampler: SamplerName = "ddim"
    """Which solver runs the denoiser backwards: `unipc`, `dpmpp_2m`, `dpmpp_3m` need the fewest steps; `ddpm`,
    `euler_ancestral`, `kdpm2_ancestral`, `dpmpp_2m_sde` add fresh noise on the way; `imported` is the scheduler that
    came with a model of another system."""
    num_sample_steps: int = 50
    """Steps from noise to latent, each one denoiser call; heun and kdpm2 make two a step, rk4 four, pndm and plms a few
    more in all, and adaptive as many as its tolerance needs."""
    spacing: Spacing = "trailing"
    """Timesteps visited: from the last one (trailing), down to the first one (leading), or both (linspace)."""
    sigmas: SigmaSpacing = "schedule"
    """Noise levels between the first and the last call: the schedule's own at the timesteps, or spaced as in Karras et
    al. 2022, evenly in their logarithm (exponential), or by quantiles of a beta distribution."""
    eta: float = 0.0
    """Share of fresh noise in each DDIM step: 0 deterministic, 1 as DDPM."""
    churn: float = 0.0
    """Noise put back before each step of heun (S_churn of Karras et al. 2022, 40 there for 256 steps); 0 is none."""
    tolerance: float = 1e-3
    """Relative and absolute error that a step of adaptive may make."""
    clipping: ClippingKind = "none"
    """Bounds of the estimated clean latent: none, [-clip_range, clip_range], or a percentile of each sample."""
    clip_range: float = 1.0
    """Bound of static clipping, and the largest one of dynamic clipping."""
    clip_percentile: float = 0.995
    """Share of a sample's values that dynamic clipping leaves as they are."""
    guidance_scale: float = 5.0
    """Strength of classifier-free guidance; 1 is none."""
    prompts: tuple[str, ...] = ()
    """Prompts of the grid (text conditioning); each is drawn `samples_per_prompt` times."""
    samples_per_prompt: int = 4
    """Pictures for each prompt or class of the grid."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_sample_steps", "samples_per_prompt", "tolerance", "clip_range", "clip_percentile")
        _require_fraction(self, "eta", "clip_percentile")
        _require_not_negative(self, "guidance_scale", "churn")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the device mesh axes; their product is the number of devices, and one of them may be -1: the rest."""

    data: int = -1
    """Devices that hold different samples and the same parameters."""
    fsdp: int = 1
    """Devices that hold different samples and a share of each large parameter."""
    tensor: int = 1
    """Devices that share the work inside a layer."""

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            _require_number(f"MeshConfig.{name}", size)
            _require(size > 0 or size == -1, f"MeshConfig.{name}={size} must be positive, or -1 for the rest")
        _require(
            list(sizes.values()).count(-1) <= 1,
            f"MeshConfig has more than one -1: {sizes}; at most one axis can take the rest of the devices",
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment: data, first stage (autoencoder), second stage (latent diffusion), and how it is sampled."""

    name: str = "unnamed"
    """Name of the experiment; the default run folder is runs/NAME."""
    start: str | None = field(default=None, metadata=_HOW)
    """Model whose weights training starts from: a run, or a model of another system as `ldm convert` reads it; its
    autoencoder is used as it is."""
    seed: int = 0
    """Root of everything random."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and matrix products; parameters, statistics and losses stay in float32."""
    data: DataConfig = field(default_factory=DataConfig)
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    conditioning: Conditioning = field(default_factory=Unconditional)
    denoiser: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig, metadata=_HOW)

    def __post_init__(self) -> None:
        _require(self.name.strip() != "", "Experiment.name is empty; its run folder is called after it")
        _require_not_negative(self, "seed")
        autoencoder, size = self.first_stage.autoencoder, self.data.image_size
        factor = autoencoder.downsample_factor * 2 ** (len(self.denoiser.channel_mult) - 1)
        below = max(size // factor, 1) * factor
        _require(
            size % factor == 0,
            f"data.image_size={size} is not divisible by {factor} (the autoencoder's downsample_factor="
            f"{autoencoder.downsample_factor} times 2 for each further level of the denoiser); "
            f"nearest usable: {below} and {below + factor}",
        )
        _require(
            autoencoder.spatial_dims == self.denoiser.spatial_dims,
            f"denoiser.spatial_dims={self.denoiser.spatial_dims} is not that of the autoencoder, whose latents it "
            f"denoises: use {autoencoder.spatial_dims}",
        )
        steps, timesteps = self.sampling.num_sample_steps, self.diffusion.schedule.num_train_timesteps
        _require(
            steps <= timesteps,
            f"sampling.num_sample_steps={steps} is more than diffusion.schedule.num_train_timesteps={timesteps}; "
            f"use at most {timesteps}",
        )
        self._check_conditioning()

    def _check_conditioning(self) -> None:
        conditioning, denoiser = self.conditioning, self.denoiser
        kind = type(conditioning).__name__
        if denoiser.num_classes is not None:
            entries = conditioning.num_entries if isinstance(conditioning, ClassConditioning) else denoiser.num_classes
            _require(
                isinstance(conditioning, ClassConditioning | ClipTextConditioning),
                f"denoiser.num_classes={denoiser.num_classes} needs class conditioning, not {kind}; set it to None",
            )
            _require(
                denoiser.num_classes == entries,
                f"denoiser.num_classes={denoiser.num_classes} is not the number of entries of the class conditioning "
                f"(its classes, and `no class`); use {entries}",
            )
        _require(
            denoiser.attention == "transformer"
            or denoiser.num_classes is not None
            or isinstance(conditioning, Unconditional | SpatialConditioning),
            f"denoiser.attention={denoiser.attention} cannot see the context of conditioning={kind}; use "
            "denoiser.attention=transformer",
        )
        for name, given in (("concat_channels", 0), ("vector_dim", None)):
            wanted = getattr(conditioning, name, getattr(denoiser, name) if name == "concat_channels" else given)
            _require(
                getattr(denoiser, name) == wanted,
                f"denoiser.{name}={getattr(denoiser, name)} does not fit conditioning={kind}; use {wanted}",
            )
        _require(
            getattr(conditioning, "null_class", True) or self.diffusion.cond_drop_prob == 0,
            f"diffusion.cond_drop_prob={self.diffusion.cond_drop_prob} needs conditioning.null_class=True: without an "
            "entry for `no class` there is nothing to put in its place; use 0",
        )


# --- load, save, compare ---------------------------------------------------------------------------------------------


def _config_folder() -> Path:
    package = Path(__file__).resolve().parent
    shipped = package / "configs"  # a wheel carries the experiments inside the package
    return shipped if shipped.is_dir() else package.parent / "configs"


_Found: TypeAlias = tuple[ModuleType, str | None]
"""The file of an experiment, executed, and the variant of its family that is meant."""


def _shipped() -> dict[str, _Found]:
    """All shipped experiments: NAME has a file of its own, FAMILY/VARIANT is in one of the files of a folder."""
    folder, found = _config_folder(), dict[str, _Found]()
    for path in folder.glob("[!_]*.py"):
        found[path.stem] = _load_file(path), None
    for path in folder.glob("[!_]*/[!_]*.py"):
        module = _load_file(path)
        found |= {f"{path.parent.name}/{variant}": (module, variant) for variant in module.VARIANTS}
    return found


def experiment_names() -> list[str]:
    """Names of the shipped experiments."""
    return sorted(_shipped())


def load_experiment(name: str) -> Experiment:
    """Load a shipped experiment by name, or from any Python file by its path, FILE.py or FILE.py:VARIANT.

    A file defines `get_config()`; that of a family defines `VARIANTS`, the description of each variant by its name, and
    `get_config(variant)`.

    Raises:
        UserError: there is no such experiment; the message offers the nearest names.
    """
    module, variant = _find(name)
    with _blamed_on(Path(module.__file__ or name)):
        experiment = module.get_config() if variant is None else module.get_config(variant)
    if not isinstance(experiment, Experiment):
        raise UserError(f"get_config() of {name} returns {experiment!r}, not an Experiment")
    return experiment


def describe_experiment(name: str) -> str:
    """What an experiment says of itself: the docstring of its file, or its family's description of the variant.

    Raises:
        UserError: there is no such experiment.
    """
    module, variant = _find(name)
    return inspect.cleandoc((module.__doc__ or "") if variant is None else module.VARIANTS[variant])


def _find(name: str) -> _Found:
    file = name.partition(".py:")[0] + ".py" if ".py:" in name else name
    known = _in_file(file) if file.endswith(".py") and Path(file).is_file() else _shipped()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"unknown experiment '{name}': {hint}known experiments: {', '.join(sorted(known))}")
    return known[name]


def _in_file(file: str) -> dict[str, _Found]:
    module = _load_file(Path(file))
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} defines no get_config(); an experiment file returns an Experiment from it")
    if not hasattr(module, "VARIANTS"):
        return {file: (module, None)}
    return {f"{file}:{variant}": (module, variant) for variant in module.VARIANTS}


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ldm_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _blamed_on(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Errors of an experiment's file, which a user has written, with the file and the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise UserError(f"{path} line {line}: {type(error).__name__}: {error}") from error


def to_dict(config: Any) -> Any:
    """The configuration as plain JSON values; every dataclass carries its class name under `type`."""
    if dataclasses.is_dataclass(config):
        values = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **values}
    return list(config) if isinstance(config, tuple) else config


def from_dict(values: Any) -> Any:
    """Inverse of `to_dict`.

    Raises:
        UserError: a class or a field is not known to this version.
    """
    if isinstance(values, list):
        return tuple(from_dict(v) for v in values)
    if not isinstance(values, dict):
        return values
    name = values.get("type", "")
    kind = globals().get(name) if isinstance(name, str) else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"the saved configuration holds an unknown type {values.get('type')!r}")
    known = field_types(kind)
    unknown = sorted(set(values) - set(known) - {"type"})
    if unknown:
        raise UserError(f"the saved {kind.__name__} has unknown fields {unknown}; known: {sorted(known)}")
    fields = {key: from_dict(value) for key, value in values.items() if key != "type"}
    for key, value in fields.items():
        if not _is_a(value, known[key]):
            raise UserError(f"the saved {kind.__name__} has {key}={value!r}, which is not {_named(known[key])}")
    return kind(**fields)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(entry, arguments[0]) for entry in value)
    if arguments:
        return any(_is_a(value, choice) for choice in arguments)
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace(f"{__name__}.", "")


def save_experiment(config: Experiment, path: Path) -> None:
    """Write the resolved experiment as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=1) + "\n")


def restore_experiment(path: Path) -> Experiment:
    """Read what `save_experiment` wrote.

    Raises:
        UserError: the file is missing, is not JSON, or does not fit this version.
    """
    try:
        config = from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist: {path.parent} is not a run folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or train into another folder") from None
    if not isinstance(config, Experiment):
        raise UserError(f"{path} holds a {type(config).__name__}, not an Experiment")
    return config


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's manifest.json as it stands; empty when it is missing or damaged."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        lists = [manifest["devices"], manifest["continued"], manifest["data"].get("class_names", [])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    named = isinstance(lists[0], list) and all(isinstance(device, str) for device in lists[0])
    return manifest if named and all(isinstance(part, list) for part in lists) else {}


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Fields that decide the result and differ, as lines `name: old -> new`; how a run is executed is left out."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        if old != new:
            yield f"{prefix}: {old!r} -> {new!r}"
        return
    for f in dataclasses.fields(old):
        if f.metadata.get("identity", True):
            name = f"{prefix}.{f.name}" if prefix else f.name
            yield from differences(getattr(old, f.name), getattr(new, f.name), name)


def field_types(kind: type) -> dict[str, Any]:
    """Resolved types of the fields of a configuration class."""
    return typing.get_type_hints(kind)
