"""What models of other systems are given of a picture, told by the channels that they take beside the noisy latent."""

from ldm_jax.config import (
    AutoencoderConfig,
    Conditioning,
    MaskedPicture,
    SpatialConditioning,
    Unconditional,
    UNetConfig,
)


def imported_given(
    conditioning: Conditioning, denoiser: UNetConfig, autoencoder: AutoencoderConfig
) -> MaskedPicture | None:
    """A picture with holes, where there is room for its latents and a mask: LDM's without a prompt, else SD's."""
    if denoiser.concat_channels != autoencoder.latent_channels + 1 or denoiser.num_classes is not None:
        return None
    if isinstance(conditioning, SpatialConditioning):
        return None
    return MaskedPicture(order="ldm" if isinstance(conditioning, Unconditional) else "sd")
