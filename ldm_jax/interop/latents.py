"""The statistics of latents: ours, one mean and spread for each channel, and the one factor of other systems.

(1) z0 = (z - mean) / std,    scale factor = 1 / std where the mean is 0 and all channels have one spread
"""

from collections.abc import Sequence

import numpy as np

from ldm_jax.model import Params


def latent_params(mean: Sequence[float], std: Sequence[float], channels: int) -> Params:
    """Statistics as a model has them, from one number for all channels or one for each."""
    statistics = {"mean": mean, "std": std}
    return {name: np.broadcast_to(np.asarray(value, np.float32), channels).copy() for name, value in statistics.items()}


def scale_factor(std: float) -> float:
    """The shortest decimal number whose inverse is `std` in float32 (1): 0.18215 again, not 0.18214999."""
    rounded = (float(f"{1 / std:.{digits}g}") for digits in range(1, 18))
    return next((factor for factor in rounded if np.float32(1 / factor) == np.float32(std)), 1 / std)
