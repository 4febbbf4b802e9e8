"""The first stage: encoder, decoder, and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ldm_jax.config.checks import require, require_fraction, require_layers, require_not_negative, require_positive
from ldm_jax.config.levels import check_levels


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
        require_positive(self, "base_channels", "latent_channels", "patch_size", "num_groups")
        require_layers(f"{type(self).__name__}.num_res_blocks", self.num_res_blocks)
        require_fraction(self, "dropout")
        if self.z_channels is not None:
            require_positive(self, "z_channels")
            require(
                (self.quant_conv and self.has_post_quant_conv) or self.z_channels == self.latent_channels,
                f"{type(self).__name__}.z_channels={self.z_channels} differs from latent_channels="
                f"{self.latent_channels}, which needs both convolutions around the latent: quant_conv=True, "
                "post_quant_conv=None",
            )
        check_levels(self)

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
        require_not_negative(self, "kl_weight")


@dataclass(frozen=True, kw_only=True)
class AutoencoderVQConfig(AutoencoderConfig):
    """Autoencoder with a codebook; the diffusion model works on z before quantisation, as in LDM."""

    codebook_size: int = 8192
    """Number of codes."""
    codebook_weight: float = 1.0
    """Weight of the codebook and commitment terms against the reconstruction loss."""
    commitment_cost: float = 0.25
    """Weight of the commitment term inside the quantiser (beta of VQ-VAE)."""
    codes: Literal["gradient", "average"] = "gradient"
    """How codes learn: by the gradient of the codebook term, or as moving averages of the latents that chose them."""
    code_decay: float = 0.99
    """Decay of those averages."""
    restart_usage: float = 0.0
    """A code used less than this share of what it would be if all were used alike is moved beside one that is used
    more (codes=average); 0 never restarts."""
    cosine_codes: bool = False
    """Compare latents and codes by their direction: both are brought to length 1 (ViT-VQGAN)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "codebook_size")
        require_not_negative(self, "codebook_weight", "commitment_cost")
        require_fraction(self, "code_decay", "restart_usage")
        require(
            self.restart_usage == 0 or self.codes == "average",
            f"AutoencoderVQConfig.restart_usage={self.restart_usage} needs codes=average, which counts how often each "
            "code is used; or set it to 0",
        )
