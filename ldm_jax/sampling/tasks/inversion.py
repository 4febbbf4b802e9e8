"""Inversion reported: how near a picture comes back from its noise.

PSNR of pixels is told with a peak of 255, that of latents of unit spread with a peak of 2.
"""

import numpy as np
from jaxtyping import UInt8

from ldm_jax.pictures import psnr


def report(
    drawn: UInt8[np.ndarray, "h w c"],
    image: UInt8[np.ndarray, "h w c"],
    reconstruction: UInt8[np.ndarray, "h w c"],
    latent_error: float,
) -> str:
    """What came back, in words: of latents, of pixels, and of pixels through the autoencoder alone.

    Args:
        drawn: the picture from its noise.
        image: the picture itself.
        reconstruction: the picture through the autoencoder.
        latent_error: mean square of the latents' difference.
    """

    def of_pixels(a: UInt8[np.ndarray, "h w c"]) -> float:
        return float(psnr(float(np.mean(np.square(a.astype(np.float64) - image))), 255.0))

    return (
        f"PSNR {float(psnr(latent_error, 2.0)):.2f} dB of latents, {of_pixels(drawn):.2f} dB of pixels; "
        f"{of_pixels(reconstruction):.2f} dB through the autoencoder alone"
    )
