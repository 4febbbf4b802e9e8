"""The zoo: every model has exactly as many parameters as the published one, and is trained as it was."""

import functools

import jax
import pytest

from ldm_jax import config as configs
from ldm_jax import rng
from ldm_jax.config import (
    AutoencoderKLConfig,
    AutoencoderVQConfig,
    Conditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    PreparedTfds,
    TextConditioning,
    UNetConfig,
    load_experiment,
)
from ldm_jax.model import make_model, num_parameters

FIRST_STAGES = {
    "vq-f4": 55_322_782,
    "vq-f4-noattn": 53_219_486,
    "vq-f8": 67_717_295,
    "vq-f8-n256": 67_652_783,
    "vq-f16": 69_593_371,
    "kl-f4": 55_312_063,
    "kl-f8": 83_653_863,
    "kl-f16": 69_610_963,
    "kl-f32": 103_880_131,
    "kl-f4-imagenet": 55_312_063,
    "kl-f8-imagenet": 83_653_863,
    "kl-f16-imagenet": 69_610_963,
    "kl-f32-imagenet": 103_880_131,
}
"""Counts of latent-diffusion's first stages; kl-f8 is that of Stable Diffusion."""

CLIP_L, OPENCLIP_H, OPENCLIP_BIG_G = 123_060_480, 340_387_840, 694_659_840
"""Of the text transformers: ViT-L/14, 23 layers of ViT-H/14, and ViT-bigG/14 with its projection."""

MODELS: dict[str, tuple[str, int, int | None]] = {
    "celebahq256": ("vq-f4", 274_056_163, 0),
    "ffhq256": ("vq-f4", 274_056_163, 0),
    "lsun_bedrooms256": ("vq-f4", 274_056_163, 0),
    "lsun_churches256": ("kl-f8", 294_966_916, 0),
    "cin256": ("vq-f8", 394_984_196, 1000 * 512),
    "cin256-v2": ("vq-f4", 400_920_579, 1001 * 512),
    "text2img256": ("vq-f4", 403_623_939, None),
    "txt2img-1p4B": ("kl-f8", 872_300_484, None),
    "bsr_sr": ("vq-f4", 113_622_563, 0),
    "inpainting_big": ("vq-f4-noattn", 387_245_827, 0),
    "layout2img": ("vq-f4", 246_277_379, None),
    "semantic_synthesis256": ("vq-f4", 215_229_315, 182 * 3),
    "semantic_synthesis512": ("vq-f4", 215_229_315, 182 * 3),
    "rdm768": ("kl-f16", 1_335_480_400, 0),
    "sd1": ("kl-f8", 859_520_964, CLIP_L),
    "sd2-base": ("kl-f8", 865_910_724, OPENCLIP_H),
    "sd2-v": ("kl-f8", 865_910_724, OPENCLIP_H),
    "sdxl": ("kl-f8", 2_567_463_684, CLIP_L + OPENCLIP_BIG_G),
}
"""First stage, and parameters of the U-Net and of the conditioner; None: by the formula for BERTEmbedder."""

TRAINED_AGAINST = {
    "vq-f4": (0, 0.75, 3),
    "vq-f4-noattn": (11, 0.75, 3),
    "vq-f8": (1, 0.6, 2),
    "vq-f8-n256": (250_001, 0.75, 3),
    "vq-f16": (250_001, 0.75, 2),
    "kl-f4": (50_001, 0.5, 3),
    "kl-f8": (50_001, 0.5, 3),
    "kl-f16": (50_001, 0.5, 3),
    "kl-f32": (50_001, 0.5, 3),
    "kl-f4-imagenet": (50_001, 0.5, 3),
    "kl-f8-imagenet": (50_001, 0.5, 3),
    "kl-f16-imagenet": (50_001, 0.5, 3),
    "kl-f32-imagenet": (50_001, 0.5, 3),
}
"""disc_start, disc_weight and disc_num_layers of the configuration files."""

SCHEDULES = {
    "vq-f4": (8, 1, 533_066, 3.6e-5),
    "vq-f4-noattn": (8, 1, 658_131, 3.6e-5),
    "vq-f8": (10, 1, 971_043, 4.5e-5),
    "vq-f8-n256": (10, 1, 1_608_649, 4.5e-5),
    "vq-f16": (14, 1, 1_101_166, 6.3e-5),
    "kl-f4": (10, 1, 176_991, 4.5e-5),
    "kl-f8": (4, 1, 246_803, 1.8e-5),
    "kl-f16": (6, 1, 442_998, 2.7e-5),
    "kl-f32": (6, 1, 406_763, 2.7e-5),
    "kl-f4-imagenet": (12, 2, 176_991, 1.08e-4),
    "kl-f8-imagenet": (12, 2, 246_803, 1.08e-4),
    "kl-f16-imagenet": (12, 2, 442_998, 1.08e-4),
    "kl-f32-imagenet": (12, 2, 406_763, 1.08e-4),
}
"""Pictures on a GPU, accumulated batches, steps (on ImageNet not published), and 4.5e-6 times the first two."""

CUTS = {
    **dict.fromkeys(("vq-f4", "vq-f4-noattn"), "keep"),
    **dict.fromkeys(("vq-f8", "vq-f8-n256", "vq-f16", "kl-f4", "kl-f8", "kl-f16", "kl-f32"), 384),
    **dict.fromkeys(("kl-f4-imagenet", "kl-f8-imagenet", "kl-f16-imagenet", "kl-f32-imagenet"), (256, 512)),
}
"""Shorter side of pictures (`size`) of which a square of 256 pixels is cut; on ImageNet 256 / max_crop_f to 256 /
min_crop_f."""

LATENTS = {
    "vq-f4": (64, 64, 3),
    "vq-f4-noattn": (64, 64, 3),
    "vq-f8": (32, 32, 4),
    "vq-f8-n256": (32, 32, 4),
    "vq-f16": (16, 16, 8),
    "kl-f4": (64, 64, 3),
    "kl-f8": (32, 32, 4),
    "kl-f16": (16, 16, 16),
    "kl-f32": (8, 8, 64),
    "kl-f4-imagenet": (64, 64, 3),
    "kl-f8-imagenet": (32, 32, 4),
    "kl-f16-imagenet": (16, 16, 16),
    "kl-f32-imagenet": (8, 8, 64),
    "semantic_synthesis512": (128, 128, 3),
    "rdm768": (48, 48, 16),
    "sd1": (64, 64, 4),
    "sd2-base": (64, 64, 4),
    "sd2-v": (96, 96, 4),
    "sdxl": (128, 128, 4),
}
"""Shapes of latents; those of other models are of 256 pixels and so those of their first stage."""


@functools.cache
def loaded(name: str) -> Experiment:
    """A member of the zoo."""
    return load_experiment(f"zoo/{name}")


@functools.cache
def count_autoencoder(config: AutoencoderKLConfig | AutoencoderVQConfig) -> int:
    """Parameters of a first stage."""
    model = make_model(Experiment(data=DataConfig(image_size=256), first_stage=FirstStageConfig(autoencoder=config)))
    return num_parameters(jax.eval_shape(model.init_autoencoder, rng.root_key(0)))


def count_second_stage(experiment: Experiment) -> dict[str, int]:
    """Parameters of denoiser and conditioner."""
    return _count_second_stage(experiment.first_stage.autoencoder, experiment.conditioning, experiment.denoiser)


@functools.cache
def _count_second_stage(
    autoencoder: AutoencoderKLConfig | AutoencoderVQConfig, conditioning: Conditioning, denoiser: UNetConfig
) -> dict[str, int]:
    """Several models differ in their data alone; the size of a picture changes no parameter."""
    smallest = autoencoder.downsample_factor * 2 ** (len(denoiser.channel_mult) - 1)
    experiment = Experiment(
        data=DataConfig(image_size=smallest),
        first_stage=FirstStageConfig(autoencoder=autoencoder),
        conditioning=conditioning,
        denoiser=denoiser,
        diffusion=DiffusionConfig(cond_drop_prob=0.0),
    )
    params = jax.eval_shape(make_model(experiment).init_denoiser, rng.root_key(0))
    return {name: num_parameters(part) for name, part in params.items()}


def bert_parameters(config: TextConditioning) -> int:
    """Of BERTEmbedder: embeddings, layers of 8 heads of 64 channels bias on the output alone, and the last norm."""
    width, inner = config.context_dim, 8 * 64
    attention = 4 * width * inner + width
    feed_forward = 2 * width * 4 * width + 4 * width + width
    layer = attention + feed_forward + 2 * 2 * width
    return (config.vocab_size + config.context_length) * width + config.num_layers * layer + 2 * width


def test_the_table_is_complete():
    assert {f"zoo/{name}" for name in [*FIRST_STAGES, *MODELS]} == {n for n in configs.experiment_names() if "/" in n}


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_has_the_published_parameters_and_latents(name: str):
    experiment = loaded(name)
    assert count_autoencoder(experiment.first_stage.autoencoder) == FIRST_STAGES[name]
    model = make_model(experiment)
    assert model.image_shape == (256, 256, 3)
    assert model.latent_shape == LATENTS[name]


@pytest.mark.parametrize(
    "name", [n if n in ("celebahq256", "sd1") else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_a_model_has_the_published_parameters_and_latents(name: str):
    experiment = loaded(name)
    first_stage, denoiser, conditioner = MODELS[name]
    if conditioner is None:
        assert isinstance(experiment.conditioning, TextConditioning)
        conditioner = bert_parameters(experiment.conditioning)
    assert count_second_stage(experiment) == {"denoiser": denoiser, "conditioner": conditioner}
    assert count_autoencoder(experiment.first_stage.autoencoder) == FIRST_STAGES[first_stage]
    assert make_model(experiment).latent_shape == LATENTS.get(name, LATENTS[first_stage])


@pytest.mark.parametrize("name", [*FIRST_STAGES, *MODELS])
def test_training_is_that_of_the_originals(name: str):
    experiment = loaded(name)
    first, second = experiment.first_stage.optimizer, experiment.optimizer
    assert (first.beta1, first.beta2, first.weight_decay, first.max_grad_norm) == (0.5, 0.9, 0.0, None)
    batch = experiment.first_stage.training.batch_size
    assert first.learning_rate == pytest.approx(4.5e-6 * batch)
    assert experiment.first_stage.training.ema_decay == 0.0
    assert experiment.diffusion.schedule.kind == "scaled_linear"
    assert experiment.compute_dtype == "float32"
    if name in MODELS:
        assert (second.beta1, second.beta2, second.weight_decay, second.max_grad_norm) == (0.9, 0.999, 0.01, None)
        assert experiment.first_stage == load_experiment(f"zoo/{MODELS[name][0]}").first_stage


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_is_trained_by_all_that_the_original_has(name: str):
    config = loaded(name).first_stage
    judge, autoencoder = config.judge, config.autoencoder
    assert judge is not None
    assert (judge.start_step, judge.weight, judge.num_layers) == TRAINED_AGAINST[name]
    assert (judge.base_channels, judge.norm, judge.loss, judge.adaptive) == (64, "batch", "hinge", True)
    assert (judge.warmup_steps, judge.ramp_steps, judge.r1_weight, judge.lecam_weight) == (0, 0, 0.0, 0.0)
    assert judge.optimizer == config.optimizer
    assert (config.reconstruction_loss, config.learn_output_logvar) == ("l1", False)
    assert (config.perceptual.net, config.perceptual.weight) == ("vgg16", 1.0)
    if isinstance(autoencoder, AutoencoderKLConfig):
        assert autoencoder.kl_weight == 1e-6
        assert judge.max_adaptive_weight * 256 * 256 * 3 == pytest.approx(1e4), "of an error that is a sum there"
    else:
        terms = autoencoder.codebook_weight, autoencoder.codebook_weight * autoencoder.commitment_cost
        assert terms == (0.25, 1.0), "of codes and of latents, as the original's legacy quantiser weighs them"
        assert judge.max_adaptive_weight == 1e4


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_is_trained_as_long_and_as_fast_as_published(name: str):
    batch, accumulate, steps, rate = SCHEDULES[name]
    first = loaded(name).first_stage
    assert first.training.batch_size == batch * accumulate, "an optimizer step sees all accumulated batches"
    assert first.training.gradient_accumulation == accumulate
    assert first.training.num_steps == steps
    assert first.optimizer.learning_rate == pytest.approx(rate)
    assert first.judge is not None and first.judge.optimizer.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_sees_squares_that_are_cut_as_in_the_original(name: str):
    data = loaded(name).data
    assert (data.image_size, data.crop, data.horizontal_flip) == (256, "random", False)
    assert data.resize == CUTS[name]
    assert isinstance(data.source, PreparedTfds)
    assert data.source.name == ("imagenet2012" if name.endswith("-imagenet") else "open_images_v4")


@pytest.mark.parametrize("name", [name for name in FIRST_STAGES if name.endswith("-imagenet")])
def test_on_imagenet_the_autoencoder_is_that_of_open_images(name: str):
    first, other = loaded(name).first_stage, loaded(name.removesuffix("-imagenet")).first_stage
    assert first.autoencoder == other.autoencoder
    assert first.perceptual == other.perceptual


RATES = {
    "celebahq256": (2e-6, 48),
    "ffhq256": (2e-6, 42),
    "lsun_bedrooms256": (2e-6, 48),
    "cin256": (1e-6, 64),
    "text2img256": (2e-6, 28),
    "bsr_sr": (1e-6, 64),
    "layout2img": (2e-6, 24),
    "semantic_synthesis512": (1e-6, 8),
}
"""base_learning_rate and batch of the configuration files, whose product on one GPU is the effective rate."""


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_is_the_effective_one(name: str):
    experiment = loaded(name)
    base, batch = RATES[name]
    assert experiment.training.batch_size == batch
    assert experiment.optimizer.learning_rate == pytest.approx(base * batch)


def test_what_the_originals_have_of_their_own():
    betas = {n: (s.beta_start, s.beta_end) for n in MODELS for s in [loaded(n).diffusion.schedule]}
    assert {n for n in MODELS if betas[n] == (0.00085, 0.012)} == {
        *("txt2img-1p4B", "sd1", "sd2-base", "sd2-v", "sdxl"),
    }
    assert {n for n in MODELS if betas[n] == (0.0015, 0.0155)} == {"lsun_churches256", "bsr_sr"}
    assert {n for n in MODELS if betas[n] == (0.0015, 0.0205)} == {
        *("inpainting_big", "layout2img", "semantic_synthesis256", "semantic_synthesis512"),
    }
    assert betas["rdm768"] == (0.0015, 0.015)
    assert {n for n in MODELS if loaded(n).diffusion.loss == "l1"} == {
        *("lsun_churches256", "inpainting_big", "layout2img", "semantic_synthesis256", "semantic_synthesis512"),
    }
    assert {n for n in MODELS if loaded(n).diffusion.prediction_type == "v"} == {"sd2-v"}
    assert {n for n in MODELS if loaded(n).training.ema_decay == 0.0} == {"cin256-v2"}
