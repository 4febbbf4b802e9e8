"""What autoencoder and U-Net share: levels of resolution with a number of channels each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm_jax.config.checks import nearest_divisor, require, require_number, require_positive_value

if TYPE_CHECKING:
    from ldm_jax.config.autoencoder import AutoencoderConfig
    from ldm_jax.config.denoiser import UNetConfig


def check_levels(config: AutoencoderConfig | UNetConfig) -> None:
    """Refuse levels that do not exist, and channels that are no whole number of groups."""
    kind, levels = type(config).__name__, len(config.channel_mult)
    require(levels > 0, f"{kind}.channel_mult=() is empty; give at least one level, such as 1 2 4")
    names = ("attention_levels", "up_attention_levels", "decoder_attention_levels", "cross_attention_only_levels")
    for name in names:
        for level in getattr(config, name, None) or ():
            require(
                0 <= level < levels,
                f"{kind}.{name}={getattr(config, name)} names level {level}, but channel_mult="
                f"{config.channel_mult} has levels 0 to {levels - 1}",
            )
    for level, mult in enumerate(config.channel_mult):
        require_positive_value(f"{kind}.channel_mult entry", mult)
        channels = config.channels_at(level)
        require_number(f"{kind}.base_channels={config.base_channels} times channel_mult entry {mult}", channels)
        require(
            abs(channels - config.base_channels * mult) < 1e-6,
            f"{kind}.channel_mult entry {mult} times base_channels={config.base_channels} is no whole number of "
            "channels",
        )
        require(
            channels % config.num_groups == 0,
            f"{kind}.num_groups={config.num_groups} does not divide {channels} channels "
            f"(base_channels={config.base_channels} times {mult}); nearest that does: "
            f"{nearest_divisor(channels, config.num_groups)}",
        )
