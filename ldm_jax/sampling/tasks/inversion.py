"""Inversion reported: how near a picture comes back from its noise.

(1) PSNR = 10 log10(peak^2 / mean square), of pixels with a peak of 255, of latents of unit spread with a peak of 2
"""

import math

import numpy as np
from jaxtyping import UInt8


def psnr(mean_square: float, peak: float) -> float:
    """(1) in dB; infinite where there is no error."""
    return math.inf if mean_square == 0.0 else 10.0 * math.log10(peak**2 / mean_square)


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
        return psnr(float(np.mean(np.square(a.astype(np.float64) - image))), 255.0)

    return (
        f"PSNR {psnr(latent_error, 2.0):.2f} dB of latents, {of_pixels(drawn):.2f} dB of pixels; "
        f"{of_pixels(reconstruction):.2f} dB through the autoencoder alone"
    )
