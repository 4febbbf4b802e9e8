"""The statistics of latents, which diffusers keeps with the autoencoder in three forms and this package in one.

(1) z0 = (z - mean) / std
(2) mean = 0 or shift_factor, std = 1 / scaling_factor    Stable Diffusion 1 to 3
(3) mean = latents_mean, std = latents_std / scaling_factor, channel by channel
"""

from typing import Any

from ldm_jax.interop.diffusers.options import Options
from ldm_jax.interop.foreign_options import refusal
from ldm_jax.interop.latents import scale_factor

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and spread (1), each one number for all channels or one for each."""


def read_statistics(options: Options, where: str) -> Statistics:
    """Mean and spread from the options of an autoencoder, by (2) or (3).

    Raises:
        UserError: they cannot be used together, or are not one for each channel.
    """
    scale = options["scaling_factor"]
    if not isinstance(scale, int | float) or not scale > 0:
        raise refusal(where, "scaling_factor", scale, "usable: a number above 0")
    shift = options.get("shift_factor")
    if options.get("latents_mean") is None and options.get("latents_std") is None:
        return (float(shift or 0),), (1 / scale,)
    if shift:
        raise refusal(where, "shift_factor", shift, "usable beside latents_mean: None")
    mean, std = (_of_channels(options, name, where) for name in ("latents_mean", "latents_std"))
    return mean, tuple(x / scale for x in std)


def _of_channels(options: Options, name: str, where: str) -> tuple[float, ...]:
    values, channels = options[name], options["latent_channels"]
    if not isinstance(values, tuple) or len(values) != channels:
        raise refusal(where, name, values, f"usable: {channels} numbers in each of latents_mean and latents_std")
    return values


def write_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """The options of an AutoencoderKL for mean and spread: the inverse of `read_statistics`."""
    if len(set(mean)) == 1 and len(set(std)) == 1:
        return {"scaling_factor": scale_factor(std[0]), "shift_factor": mean[0] or None}
    channels = max(len(mean), len(std))
    means, stds = (values if len(values) == channels else values * channels for values in (mean, std))
    return {"scaling_factor": 1.0, "latents_mean": means, "latents_std": stds}
