"""Experiments of a size at which a step compiles in seconds, with every choice of the original."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import rng, sharding
from ldm_jax.autoencoder.perceptual_weights import abstract_perceptual
from ldm_jax.conditioning.tokenizer import token_inputs
from ldm_jax.config import (
    AutoencoderVQConfig,
    ClassConditioning,
    Conditioning,
    DiscriminatorConfig,
    Experiment,
    Given,
    MaskedPicture,
    MeshConfig,
    OpenMojiScenes,
    PerceptualConfig,
    PerceptualNet,
    Shapes,
    TextConditioning,
    TrainingConfig,
    Unconditional,
    load_experiment,
)
from ldm_jax.data.shapes import SHAPES
from ldm_jax.model import LatentDiffusion, Params

TEXT = TextConditioning(vocab_size=300, context_length=8, context_dim=8, num_layers=1, num_heads=2)
CLASSES = ClassConditioning(num_classes=len(SHAPES), context_dim=8)


def tiny_experiment(data_cache: Path) -> Experiment:
    """Text to 8x8 pictures of shapes; whoever uses it shares its compiled programs."""
    return shrink(load_experiment("smoke"), data_cache)


def shrink(experiment: Experiment, data_cache: Path) -> Experiment:
    """An experiment with its kinds and options as they are and its sizes tiny, on shapes.

    One that is given something beside caption and class stays on its scenes, with its conditioning and patches.
    """
    first, given = experiment.first_stage, experiment.given
    autoencoder = dataclasses.replace(
        first.autoencoder,
        base_channels=8,
        channel_mult=(1,) * min(2, len(first.autoencoder.channel_mult)),
        num_res_blocks=1,
        attention_levels=(0,) if first.autoencoder.attention_levels else (),
        latent_channels=2,
        patch_size=first.autoencoder.patch_size if given else min(2, first.autoencoder.patch_size),
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
            source=OpenMojiScenes(num_examples=20) if given else Shapes(num_examples=20),
            image_size=16 if given else 8,
            resize=None,
            image_channels=3,
            cache_dir=str(data_cache),
            num_threads=0,
        ),
        first_stage=dataclasses.replace(
            first,
            autoencoder=autoencoder,
            perceptual=PerceptualConfig(),  # it sees nothing in pictures of this size
            discriminator=_shrink_discriminator(first.discriminator),
            training=_shorten(first.training),
        ),
        conditioning=_shrink_conditioning(experiment.conditioning, given),
        denoiser=dataclasses.replace(denoiser, concat_channels=3) if isinstance(given, MaskedPicture) else denoiser,
        training=_shorten(experiment.training),
        sampling=dataclasses.replace(experiment.sampling, num_sample_steps=2, samples_per_prompt=2),
    )


def _shrink_conditioning(conditioning: Conditioning, given: Given | None) -> Conditioning:
    if isinstance(conditioning, Unconditional):
        return conditioning
    if given and not token_inputs(conditioning):
        return conditioning
    return CLASSES if isinstance(conditioning, ClassConditioning) else TEXT


def _shrink_discriminator(discriminator: DiscriminatorConfig | None) -> DiscriminatorConfig | None:
    if discriminator is None:
        return None
    return dataclasses.replace(discriminator, base_channels=4, num_layers=1, start_step=1, warmup_steps=0)


def _shorten(training: TrainingConfig) -> TrainingConfig:
    return dataclasses.replace(
        training,
        batch_size=8,
        gradient_accumulation=min(2, training.gradient_accumulation),
        num_steps=3,
        log_every=1,
        checkpoint_every=2,
    )


def one_device_mesh() -> Mesh:
    """The first of the devices: programs for one compile quicker than programs for eight."""
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def random_params(model: LatentDiffusion) -> Params:
    """Parameters without compiling anything, and none at zero: a model that starts at zero hides what reaches it."""
    numbers = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, rng.root_key(0))
    params = jax.tree.map(lambda x: 0.2 * numbers.normal(size=x.shape).astype(np.float32), shapes)
    params["latent"] = {"mean": params["latent"]["mean"], "std": np.full_like(params["latent"]["std"], 1.5)}
    return jax.tree.map(jax.numpy.asarray, params)


def random_perceptual(net: PerceptualNet) -> Params:
    """Weights of LPIPS that no package brings; its heads are positive, as trained ones are."""
    numbers = np.random.default_rng(0)
    shapes = abstract_perceptual(net)

    def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
        values = numbers.normal(size=x.shape) * np.sqrt(2.0 / (np.prod(x.shape[:-1]) or 1))
        return np.asarray(values if len(x.shape) > 1 else 0.1 * np.abs(values), np.float32)

    return jax.tree.map(draw, shapes)
