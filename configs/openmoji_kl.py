"""The first stage with everything it can be trained by, on OpenMoji pictograms of 64 pixels: latents of 8x8x8.

    pip install "ldm_jax[demo,perceptual]"
    python train.py openmoji_kl
    ldm evaluate runs/openmoji_kl --reconstruction

L1, LPIPS over AlexNet (VGG16 takes some thirty times the operations) and a patch discriminator. Each is switched off by
its weight: --first-stage.perceptual.weight 0, --first-stage.discriminator.weight 0; docs/first_stage.md has what they
did. The second stage is a small unconditional denoiser for a look at the latents.

Hardware: two CPU cores. Measured 2026-12-01 on an EPYC: 0.40 s a step of the first stage, 7 minutes; held out (three
seeds) PSNR 16.7 +- 0.3, LPIPS over AlexNet 0.098 +- 0.009.
"""

from ldm_jax.config import (
    AutoencoderKLConfig,
    DataConfig,
    DiffusionConfig,
    DiscriminatorConfig,
    Experiment,
    FirstStageConfig,
    OpenMoji,
    OptimizerConfig,
    PerceptualConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Experiment:
    """A KL autoencoder against L1, LPIPS and a discriminator."""
    return Experiment(
        name="openmoji_kl",
        data=DataConfig(source=OpenMoji(), image_size=64, horizontal_flip=True),
        first_stage=FirstStageConfig(
            autoencoder=AutoencoderKLConfig(
                base_channels=48,
                channel_mult=(1, 2),
                num_res_blocks=1,
                patch_size=4,
                latent_channels=8,
                num_groups=16,
                kl_weight=1e-3,
            ),
            perceptual=PerceptualConfig(weight=1.0, net="alexnet"),
            discriminator=DiscriminatorConfig(
                base_channels=16,
                num_layers=2,
                norm="group",
                start_step=300,
                ramp_steps=100,
                weight=0.5,
                optimizer=OptimizerConfig(learning_rate=5e-5, beta1=0.5, beta2=0.9, weight_decay=0.0),
            ),
            training=TrainingConfig(
                batch_size=16, num_steps=1000, ema_decay=0.99, eval_every=100, sample_every=500, checkpoint_every=500
            ),
            optimizer=OptimizerConfig(learning_rate=2e-3, beta1=0.5, warmup_steps=50, decay="cosine"),
        ),
        denoiser=UNetConfig(
            base_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), attention="self"
        ),
        diffusion=DiffusionConfig(
            schedule=ScheduleConfig(kind="cosine", zero_terminal_snr=True), prediction_type="v", cond_drop_prob=0.0
        ),
        training=TrainingConfig(batch_size=32, num_steps=300, ema_decay=0.99, eval_every=300, sample_every=300),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50),
        sampling=SamplingConfig(num_sample_steps=30, guidance_scale=1.0),
    )
