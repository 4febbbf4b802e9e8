"""Text to image in the latents of a KL autoencoder with factor 8, the size of LDM's 1.45 B-parameter model.

    python train.py text2image_f8 --data.source.directory PICTURES [--first-stage.run RUN]

PICTURES is a folder of images with captions (a .txt beside each, or metadata.jsonl). U-Net of 872.3 M parameters and a
text transformer of 32 layers and width 1280 trained with it, as in CompVis/latent-diffusion, txt2img-1p4B-eval.yaml
(trained on LAION-400M). Needs many accelerators (planned for 64 at a global batch of 1024). The first stage here is
trained without the perceptual and adversarial terms that the original has.

Time and result: not measured.
"""

from ldm_jax.config import (
    AutoencoderKLConfig,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    ImageFolder,
    MeshConfig,
    OptimizerConfig,
    SamplingConfig,
    ScheduleConfig,
    TextConditioning,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Experiment:
    """Captions to pictures of 256 pixels in 32x32x4 latents."""
    return Experiment(
        name="text2image_f8",
        compute_dtype="bfloat16",
        data=DataConfig(source=ImageFolder(), image_size=256, cache_latents=False, num_threads=32),
        first_stage=FirstStageConfig(
            autoencoder=AutoencoderKLConfig(channel_mult=(1, 2, 4, 4), latent_channels=4),
            training=TrainingConfig(
                batch_size=256, num_steps=250_000, eval_every=5000, sample_every=10_000, checkpoint_every=5000
            ),
            optimizer=OptimizerConfig(learning_rate=1e-4, beta1=0.5, beta2=0.9, warmup_steps=5000),
        ),
        conditioning=TextConditioning(
            vocab_size=30_522, context_length=77, context_dim=1280, num_layers=32, num_heads=20
        ),
        denoiser=UNetConfig(
            base_channels=320,
            channel_mult=(1, 2, 4, 4),
            attention_levels=(0, 1, 2),
            num_heads=8,
            num_head_channels=None,
        ),
        diffusion=DiffusionConfig(schedule=ScheduleConfig(beta_start=0.00085, beta_end=0.012)),
        training=TrainingConfig(
            batch_size=1024,
            num_steps=400_000,
            log_every=100,
            eval_every=5000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=10_000),
        sampling=SamplingConfig(
            num_sample_steps=50,
            guidance_scale=5.0,
            prompts=("a painting of a fox", "a red bicycle", "a bowl of fruit", "a street at night"),
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
    )
