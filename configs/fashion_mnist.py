"""Class-conditional latent diffusion on Fashion-MNIST, 28 pixels padded by resizing to 32, ten classes.

    apt-get install dataset-fashion-mnist        # or --data.source.directory FOLDER with the four idx files
    python train.py fashion_mnist
    python sample.py runs/fashion_mnist --class-label sneaker --class-label bag

Hardware: two CPU cores. Time and result: not measured.
"""

from ldm_jax.config import (
    AutoencoderKLConfig,
    ClassConditioning,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FashionMnist,
    FirstStageConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Experiment:
    """Ten classes of clothes in grey."""
    return Experiment(
        name="fashion_mnist",
        data=DataConfig(source=FashionMnist(), image_size=32, image_channels=1, horizontal_flip=True),
        first_stage=FirstStageConfig(
            autoencoder=AutoencoderKLConfig(
                base_channels=64, channel_mult=(1,), num_res_blocks=1, patch_size=4, latent_channels=3
            ),
            training=TrainingConfig(batch_size=16, num_steps=1500, ema_decay=0.99, checkpoint_every=500),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, decay="cosine"),
        ),
        conditioning=ClassConditioning(num_classes=10, context_dim=128),
        denoiser=UNetConfig(
            base_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_head_channels=32
        ),
        diffusion=DiffusionConfig(schedule=ScheduleConfig(kind="cosine", zero_terminal_snr=True), prediction_type="v"),
        training=TrainingConfig(batch_size=32, num_steps=4000, ema_decay=0.998),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine"),
        sampling=SamplingConfig(num_sample_steps=30, guidance_scale=2.0, samples_per_prompt=6),
    )
