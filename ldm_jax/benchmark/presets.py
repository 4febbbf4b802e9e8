"""The networks of the presets, and the sizes at which each task takes them; measured results refer to these names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ldm_jax.benchmark.task import TaskName
from ldm_jax.config import AutoencoderKLConfig, UNetConfig
from ldm_jax.interop.diffusers.autoencoder import DiffusersAutoencoder
from ldm_jax.interop.diffusers.unet_fields import DiffusersUNet

Network: TypeAlias = DiffusersUNet | DiffusersAutoencoder

TOKENS = 77
"""Length of the context, that of CLIP."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and the size of a task."""

    network: Network
    side: int
    """Height and width of what the network takes: latents of a U-Net; pixels of an autoencoder, also to decode."""
    batch_size: int


SMALL_UNET = DiffusersUNet(
    config=UNetConfig(
        base_channels=64, channel_mult=(1, 2, 4), attention_levels=(0, 1), num_heads=8, num_head_channels=None
    ),
    in_channels=4,
    out_channels=4,
    sample_size=16,
    context_dim=256,
)
"""18.15 M parameters."""

SD1_UNET = DiffusersUNet(
    config=UNetConfig(
        base_channels=320, channel_mult=(1, 2, 4, 4), attention_levels=(0, 1, 2), num_heads=8, num_head_channels=None
    ),
    in_channels=4,
    out_channels=4,
    sample_size=64,
    context_dim=768,
)
"""Stable Diffusion 1."""


def kl_f8(base_channels: int) -> DiffusersAutoencoder:
    """The 8-fold autoencoder of Stable Diffusion, where `base_channels` is 128, or one of another width."""
    config = AutoencoderKLConfig(base_channels=base_channels, channel_mult=(1, 2, 4, 4))
    return DiffusersAutoencoder(config=config, sample_size=512)


SMALL_AUTOENCODER = DiffusersAutoencoder(
    config=AutoencoderKLConfig(base_channels=64, channel_mult=(1, 2, 4)), sample_size=64
)

PRESETS: Mapping[str, Mapping[TaskName, Setting]] = {
    "small": {
        "train": Setting(network=SMALL_UNET, side=16, batch_size=16),
        "sample": Setting(network=SMALL_UNET, side=16, batch_size=4),
        "train_autoencoder": Setting(network=SMALL_AUTOENCODER, side=64, batch_size=8),
        "encode": Setting(network=kl_f8(32), side=512, batch_size=1),
        "decode": Setting(network=kl_f8(32), side=512, batch_size=1),
    },
    "sd1": {
        "train": Setting(network=SD1_UNET, side=64, batch_size=1),
        "sample": Setting(network=SD1_UNET, side=64, batch_size=1),
        "train_autoencoder": Setting(network=kl_f8(128), side=256, batch_size=1),
        "encode": Setting(network=kl_f8(128), side=512, batch_size=1),
        "decode": Setting(network=kl_f8(128), side=512, batch_size=1),
    },
}
