"""How far a reconstruction is from its picture, for each pair of 8-bit pictures: PSNR and SSIM.

Both are those of scikit-image with its defaults: `peak_signal_noise_ratio(..., data_range=255)` and
`structural_similarity(..., data_range=255, channel_axis=-1)`, that is windows of 7 x 7, each pixel of a window with the
same weight, sample covariances, every channel for itself, and windows that lie wholly inside.

(1) psnr = 10 log10(255^2 / mean (x - y)^2)
(2) ssim = mean (2 m_x m_y + c_1)(2 c_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(v_x + v_y + c_2)), c_i = (255 k_i)^2,
    k = 0.01, 0.03                                          Wang et al. 2004, doi:10.1109/TIP.2003.819861
"""

import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax import pictures
from ldm_jax.errors import UserError

_WINDOW = 7
_C1, _C2 = (255 * 0.01) ** 2, (255 * 0.03) ** 2


def psnr(first: UInt8[np.ndarray, "b h w c"], second: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, " b"]:
    """Peak signal to noise ratio in dB (1); infinite for equal pictures."""
    error = ((first.astype(np.float64) - second) ** 2).mean((1, 2, 3))
    return pictures.psnr(error, 255.0)


def ssim(first: UInt8[np.ndarray, "b h w c"], second: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, " b"]:
    """Structural similarity (2), 1 for equal pictures.

    Raises:
        UserError: the pictures are smaller than a window.
    """
    if min(first.shape[1:3]) < _WINDOW:
        raise UserError(
            f"SSIM looks at windows of {_WINDOW}x{_WINDOW} pixels, and the pictures have "
            f"{first.shape[1]}x{first.shape[2]}; use larger ones"
        )
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = _mean(x), _mean(y)
    to_sample = _WINDOW**2 / (_WINDOW**2 - 1)
    variance_x = to_sample * (_mean(x * x) - mean_x**2)
    variance_y = to_sample * (_mean(y * y) - mean_y**2)
    covariance = to_sample * (_mean(x * y) - mean_x * mean_y)
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    below = (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    return (above / below).mean((1, 2, 3))


def _mean(x: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b i j c"]:
    """The mean of every window."""
    for axis in (1, 2):
        x = np.lib.stride_tricks.sliding_window_view(x, _WINDOW, axis=axis).mean(-1)
    return x
