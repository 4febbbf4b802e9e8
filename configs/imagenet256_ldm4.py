"""Class-conditional LDM-4 on ImageNet at 256 pixels, the size of the original's cin256-v2 (400.9 M-parameter U-Net).

    python train.py imagenet256_ldm4 --data.source.directory TFDS_DIR [--first-stage.run RUN]

Needs `imagenet2012` prepared by TFDS as array_record, and many accelerators (planned for 64 at a global batch of
1024). The original reports FID 3.6 with guidance (CompVis/latent-diffusion, news of April 2022). The first stage
here is trained without the perceptual and adversarial terms that the original has.

Time and result: not measured.
"""

from ldm_jax.config import (
    AutoencoderVQConfig,
    ClassConditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    OptimizerConfig,
    PreparedTfds,
    SamplingConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Experiment:
    """ImageNet in 64x64x3 latents."""
    return Experiment(
        name="imagenet256_ldm4",
        compute_dtype="bfloat16",
        data=DataConfig(
            source=PreparedTfds(name="imagenet2012", test_split="validation"),
            image_size=256,
            horizontal_flip=True,
            cache_latents=False,
            num_threads=32,
        ),
        first_stage=FirstStageConfig(
            autoencoder=AutoencoderVQConfig(channel_mult=(1, 2, 4), latent_channels=3, codebook_size=8192),
            training=TrainingConfig(
                batch_size=256, num_steps=500_000, eval_every=5000, sample_every=10_000, checkpoint_every=5000
            ),
            optimizer=OptimizerConfig(learning_rate=1e-4, beta1=0.5, beta2=0.9, warmup_steps=5000),
        ),
        conditioning=ClassConditioning(num_classes=1000, context_dim=512),
        denoiser=UNetConfig(
            base_channels=192,
            channel_mult=(1, 2, 3, 5),
            attention_levels=(1, 2, 3),
            num_heads=1,
            num_head_channels=None,
        ),
        diffusion=DiffusionConfig(schedule=ScheduleConfig(beta_start=0.0015, beta_end=0.0195)),
        training=TrainingConfig(
            batch_size=1024,
            num_steps=400_000,
            log_every=100,
            eval_every=5000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000),
        sampling=SamplingConfig(num_sample_steps=250, guidance_scale=1.5, eta=1.0),
    )
