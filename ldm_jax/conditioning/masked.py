"""The channels that tell a denoiser of a picture with holes: its latents and the mask, beside the noisy latent.

(1) ldm: latents of the picture with black holes, then the mask as -1 and 1     CompVis/latent-diffusion, inpaint.py
(2) sd:  the mask as 0 and 1, then latents of the picture with grey holes       runwayml/stable-diffusion, inpainting
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.config import MaskedOrder


def masked_channels(
    latents: Float[Array, "b *latent z"], mask: Float[Array, "b *spatial 1"], order: MaskedOrder
) -> Float[Array, "b *latent k"]:
    """Both in their order (1), (2); the mask, 1 in the holes, is taken at every f-th pixel, as `nearest` does."""
    steps = (
        slice(None, None, side // small) for side, small in zip(mask.shape[1:-1], latents.shape[1:-1], strict=True)
    )
    small = mask[(slice(None), *steps)].astype(latents.dtype)
    return jnp.concatenate([latents, 2 * small - 1] if order == "ldm" else [small, latents], axis=-1)
