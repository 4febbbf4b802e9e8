"""What the denoiser is told: nothing, a class, a text, a map, an embedding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ldm_jax.config.checks import (
    HOW,
    nearest_divisor,
    require,
    require_fraction,
    require_layers,
    require_not_negative,
    require_positive,
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
        require_positive(self, "num_classes", "context_dim")

    @property
    def num_entries(self) -> int:
        """Rows of the table: the classes, and `no class` where there is one."""
        return self.num_classes + self.null_class


@dataclass(frozen=True, kw_only=True)
class TextConditioning:
    """A text transformer trained jointly with the denoiser, as LDM's text-to-image model has it."""

    tokens: Literal["captions", "boxes"] = "captions"
    """What the tokens say: a caption, or the objects of a picture with their boxes (LDM's layout-to-image model)."""
    tokens_per_box: Literal[1, 3] = 3
    """What becomes of an object: its label and the corners of its box are three places of the context, whose embeddings
    are learned one by one (LDM), or one place, of its label and waves over its corners (GLIGEN)."""
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
        require_positive(self, "vocab_size", "context_dim", "num_heads")
        require_layers("TextConditioning.num_layers", self.num_layers)
        _check_tokens(self)
        require_fraction(self, "dropout")
        require(
            self.tokens_per_box == 3 or (self.tokens == "boxes" and self.context_length % 3 == 0),
            f"TextConditioning.tokens_per_box={self.tokens_per_box} is of tokens=boxes with a context_length that 3 "
            f"divides, not of {self.tokens} with {self.context_length}; use 3, or change these",
        )
        for name in ("num_head_channels", "mlp_dim"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        require(
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
    folder: str | None = field(default=None, metadata=HOW)
    """Folder of a transformers CLIPTextModel (and of its tokenizer) whose weights are used."""
    trainable: bool = False
    """Train it with the denoiser."""

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "context_dim", "num_heads", "norm_epsilon")
        require_layers(f"{type(self).__name__}.num_layers", self.num_layers)
        for name in ("mlp_dim", "projection_dim"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        _check_tokens(self)
        require(
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
        require_positive(self, "size_dim")
        require(
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
    require_positive(config, "context_length")
    require(
        config.context_length >= 3,
        f"{kind}.context_length={config.context_length} must be at least 3: begin, one token, end",
    )
    for name in ("begin_token", "end_token", "pad_token"):
        value = getattr(config, name)
        require(
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
        require_positive(self, "in_channels")
        require_not_negative(self, "num_stages")
        require(self.num_stages <= 30, f"SpatialConditioning.num_stages={self.num_stages} must be at most 30")
        if self.out_channels is not None:
            require_positive(self, "out_channels")

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
        require_positive(self, "context_dim", "context_length")


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
        require_positive(self, "image_size", "image_channels", "patch_size", "width", "num_heads", "norm_epsilon")
        require_layers(f"{type(self).__name__}.num_layers", self.num_layers)
        for name in ("mlp_dim", "projection_dim"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        require(
            self.patch_size <= self.image_size,
            f"ClipVisionConfig.patch_size={self.patch_size} is larger than image_size={self.image_size}; "
            f"use at most {self.image_size}",
        )
        require(
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
