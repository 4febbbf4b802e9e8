"""Experiments of a size at which a step costs milliseconds and compiles in seconds; they keep every choice of the original."""

import dataclasses
from pathlib import Path

from ldm_jax.config import (
    AutoencoderKLConfig,
    AutoencoderVQConfig,
    ClassConditioning,
    Conditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    OptimizerConfig,
    SamplingConfig,
    Shapes,
    TextConditioning,
    TrainingConfig,
    Unconditional,
    UNetConfig,
)
from ldm_jax.data.shapes import SHAPES

TRAINING = TrainingConfig(
    batch_size=8, num_steps=4, log_every=1, eval_every=2, sample_every=4, checkpoint_every=2, ema_decay=0.9
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
TEXT = TextConditioning(vocab_size=300, context_length=8, context_dim=8, num_layers=1, num_heads=2)
CLASSES = ClassConditioning(num_classes=len(SHAPES), context_dim=8)
AUTOENCODER = AutoencoderKLConfig(
    base_channels=8,
    channel_mult=(1,),
    num_res_blocks=1,
    mid_attention=False,
    latent_channels=2,
    patch_size=2,
    num_groups=4,
)
DENOISER = UNetConfig(
    base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(), num_head_channels=4, num_groups=4
)


def tiny_experiment(data_cache: Path, conditioning: Conditioning = CLASSES, **changes: object) -> Experiment:
    """Both stages on 8x8 shapes; `changes` replace fields of the experiment."""
    experiment = Experiment(
        name="tiny",
        data=DataConfig(source=Shapes(num_examples=20), image_size=8, cache_dir=str(data_cache), num_threads=0),
        first_stage=FirstStageConfig(autoencoder=AUTOENCODER, training=TRAINING, optimizer=OPTIMIZER),
        conditioning=conditioning,
        denoiser=DENOISER,
        diffusion=DiffusionConfig(prediction_type="v"),
        training=TRAINING,
        optimizer=OPTIMIZER,
        sampling=SamplingConfig(
            num_sample_steps=2, guidance_scale=2.0, prompts=("a red circle",), samples_per_prompt=2
        ),
    )
    return dataclasses.replace(experiment, **changes)


def shrink(experiment: Experiment, data_cache: Path) -> Experiment:
    """An experiment with its kinds and options as they are and its sizes tiny, on shapes."""
    first = experiment.first_stage
    autoencoder = dataclasses.replace(
        first.autoencoder,
        base_channels=8,
        channel_mult=(1,) * min(2, len(first.autoencoder.channel_mult)),
        num_res_blocks=1,
        attention_levels=(0,) if first.autoencoder.attention_levels else (),
        latent_channels=2,
        patch_size=min(2, first.autoencoder.patch_size),
        num_groups=4,
    )
    if isinstance(autoencoder, AutoencoderVQConfig):
        autoencoder = dataclasses.replace(autoencoder, codebook_size=16)
    denoiser = dataclasses.replace(
        experiment.denoiser,
        base_channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_levels=(0,) if 0 in experiment.denoiser.attention_levels else (),
        transformer_depth=1,
        num_heads=None if experiment.denoiser.num_heads is None else 2,
        num_head_channels=None if experiment.denoiser.num_head_channels is None else 4,
        num_groups=4,
    )
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(
            experiment.data,
            source=Shapes(num_examples=20),
            image_size=8,
            image_channels=3,
            cache_dir=str(data_cache),
            num_threads=0,
        ),
        first_stage=dataclasses.replace(first, autoencoder=autoencoder, training=_shorten(first.training)),
        conditioning=_shrink_conditioning(experiment.conditioning),
        denoiser=denoiser,
        training=_shorten(experiment.training),
        sampling=dataclasses.replace(experiment.sampling, num_sample_steps=2, samples_per_prompt=2),
    )


def _shrink_conditioning(conditioning: Conditioning) -> Conditioning:
    if isinstance(conditioning, Unconditional):
        return conditioning
    return CLASSES if isinstance(conditioning, ClassConditioning) else TEXT


def _shorten(training: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(
        training,
        batch_size=8,
        gradient_accumulation=min(2, training.gradient_accumulation),
        num_steps=3,
        log_every=1,
        checkpoint_every=2,
    )
