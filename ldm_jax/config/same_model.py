"""Whether two experiments have the same model, or the same part of one, however their configurations write it.

A file of another system says `(2, 2, 2)` where a configuration here says `2`, or writes out what None stands for; and
what only training looks at, such as dropout, is no part of a model. Both are brought to one form first.
"""

import dataclasses
from typing import Any

from ldm_jax.config.autoencoder import AutoencoderConfig
from ldm_jax.config.conditioning import ClipTextConditioning, Conditioning, SdxlConditioning, TextConditioning
from ldm_jax.config.denoiser import Place, UNetConfig
from ldm_jax.config.experiment import Experiment
from ldm_jax.config.saved import differences

_OF_TRAINING = (
    *("dropout", "kl_weight", "codebook_weight", "commitment_cost", "trainable"),
    *("codes", "code_decay", "restart_usage"),
)


def model_differences(old: Experiment, new: Experiment) -> list[str]:
    """Fields in which the models of two experiments differ, as lines `name: old -> new`."""
    one, other = (
        {
            **encoder_forms(experiment),
            "denoiser": _unet_form(experiment.denoiser),
            "diffusion.variance": experiment.diffusion.variance,
        }
        for experiment in (old, new)
    )
    return [line for name, part in one.items() for line in differences(part, other[name], name)]


def encoder_forms(experiment: Experiment) -> dict[str, Any]:
    """What encodes pictures and conditions: fields of the experiment by their names, each in its one form."""
    return {
        "first_stage.autoencoder": autoencoder_form(experiment.first_stage.autoencoder),
        "data.image_channels": experiment.data.image_channels,
        "conditioning": conditioning_form(experiment.conditioning),
    }


def autoencoder_form(config: AutoencoderConfig) -> AutoencoderConfig:
    """An autoencoder with nothing left to None and nothing that only training looks at."""
    decoder = config.decoder_attention_levels
    return dataclasses.replace(
        _without_training(config),
        decoder_attention_levels=config.attention_levels if decoder is None else decoder,
        z_channels=config.latent_channels if config.z_channels is None else config.z_channels,
        post_quant_conv=config.has_post_quant_conv,
    )


def conditioning_form(config: Conditioning) -> Conditioning:
    """A conditioner with nothing left to None and nothing that only training looks at."""
    match config:
        case TextConditioning():
            return dataclasses.replace(
                _without_training(config),
                mlp_dim=config.mlp_dim or 4 * config.context_dim,
                num_head_channels=config.num_head_channels or config.context_dim // config.num_heads,
            )
        case ClipTextConditioning():
            return _clip_form(config)
        case SdxlConditioning():
            return dataclasses.replace(
                _without_training(config), first=_clip_form(config.first), second=_clip_form(config.second)
            )
        case _:
            return config


def embedding_form(config: ClipTextConditioning | SdxlConditioning) -> ClipTextConditioning | SdxlConditioning:
    """Text encoders with nothing but what decides which embeddings they make of a caption."""
    if isinstance(config, ClipTextConditioning):
        return dataclasses.replace(_clip_form(config), folder=None)
    first, second = (dataclasses.replace(_clip_form(text), folder=None) for text in (config.first, config.second))
    return SdxlConditioning(first=first, second=second)


def _clip_form(config: ClipTextConditioning) -> ClipTextConditioning:
    # where the end mark is the largest token, it is the first largest one
    largest = config.end_token == config.vocab_size - 1
    return dataclasses.replace(
        _without_training(config),
        mlp_dim=config.mlp_dim or 4 * config.context_dim,
        pooled_at="end" if largest else config.pooled_at,
    )


def _unet_form(config: UNetConfig) -> UNetConfig:
    levels = range(len(config.channel_mult))
    up = config.attention_levels if config.up_attention_levels is None else config.up_attention_levels
    attended = {*config.attention_levels, *up, *(levels[-1:] if config.mid_attention else ())}

    def depth(value: int, matters: bool) -> int:
        return value if matters and config.attention == "transformer" else 1

    def heads(place: Place) -> tuple[int, ...]:
        return tuple(config.heads_at(level, place) if level in attended else 1 for level in levels)

    return dataclasses.replace(
        _without_training(config),
        num_heads=heads("down"),
        num_heads_up=None if heads("up") == heads("down") else heads("up"),
        num_head_channels=None,
        up_attention_levels=up,
        num_res_blocks=tuple(config.res_blocks_at(level) for level in levels),
        transformer_depth=tuple(depth(config.depth_at(level), level in attended) for level in levels),
        mid_transformer_depth=depth(config.depth_at(levels[-1], "mid"), config.mid_attention),
        resample_with_res_blocks=(
            *(config.resamples_in_res_block("down", level) for level in levels[:-1]),
            *(config.resamples_in_res_block("up", level) for level in levels[1:]),
        ),
        time_embedding_dim=config.time_embedding_dim or 4 * config.base_channels,
    )


def _without_training(config: Any) -> Any:
    """The configuration with its defaults where a field is of interest to training alone."""
    fields = {f.name: f.default for f in dataclasses.fields(config) if f.name in _OF_TRAINING}
    return dataclasses.replace(config, **fields)
