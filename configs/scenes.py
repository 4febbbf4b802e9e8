"""Text to scenes of several OpenMoji pictograms, 64 pixels: what the models of the other tasks here are built on.

    python train.py scenes
    python sample.py runs/scenes --prompt "panda, red apple and mountain"

Its first stage serves the others: `python train.py superres --first-stage.run runs/scenes`.
Hardware: two CPU cores. Time and result: not measured.
"""

from ldm_jax.config import (
    AutoencoderKLConfig,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    OpenMojiScenes,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    TextConditioning,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Experiment:
    """Captions that list what is in the scene."""
    return Experiment(
        name="scenes",
        data=DataConfig(source=OpenMojiScenes(), image_size=64, horizontal_flip=True),
        first_stage=FirstStageConfig(
            autoencoder=AutoencoderKLConfig(
                base_channels=96, channel_mult=(1,), num_res_blocks=1, patch_size=4, latent_channels=8, kl_weight=1e-3
            ),
            training=TrainingConfig(
                batch_size=16, num_steps=3000, ema_decay=0.99, eval_every=500, sample_every=500, checkpoint_every=500
            ),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, decay="cosine"),
        ),
        conditioning=TextConditioning(
            vocab_size=2048, context_length=24, context_dim=128, num_layers=1, num_heads=4, dropout=0.1
        ),
        denoiser=UNetConfig(
            base_channels=64,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            attention_levels=(1, 2),
            num_head_channels=32,
        ),
        diffusion=DiffusionConfig(schedule=ScheduleConfig(kind="cosine", zero_terminal_snr=True), prediction_type="v"),
        training=TrainingConfig(
            batch_size=16, num_steps=8000, ema_decay=0.999, eval_every=1000, sample_every=2000, checkpoint_every=500
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine"),
        sampling=SamplingConfig(
            num_sample_steps=30,
            guidance_scale=2.5,
            prompts=("panda and red apple", "tiger, sun and mountain", "flag: Germany", "purple square and pie"),
        ),
    )
