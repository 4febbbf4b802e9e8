"""Both stages on generated coloured shapes: to see that everything works, not to see pictures.

    python train.py smoke

Hardware: two CPU cores. Measured 2026-11-22 with an empty compilation cache, beside other work: 109 s.
"""

from ldm_jax.config import (
    AutoencoderKLConfig,
    DataConfig,
    DiffusionConfig,
    Experiment,
    FirstStageConfig,
    OptimizerConfig,
    SamplingConfig,
    Shapes,
    TextConditioning,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Experiment:
    """The smallest experiment that uses every part."""
    training = TrainingConfig(
        batch_size=16, num_steps=20, log_every=5, eval_every=10, sample_every=20, checkpoint_every=10, ema_decay=0.9
    )
    return Experiment(
        name="smoke",
        data=DataConfig(source=Shapes(num_examples=64), image_size=16),
        first_stage=FirstStageConfig(
            autoencoder=AutoencoderKLConfig(
                base_channels=16, channel_mult=(1,), num_res_blocks=1, patch_size=4, num_groups=8
            ),
            training=training,
            optimizer=OptimizerConfig(learning_rate=1e-3),
        ),
        conditioning=TextConditioning(vocab_size=300, context_length=8, context_dim=16, num_layers=1, num_heads=2),
        denoiser=UNetConfig(
            base_channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_levels=(1,),
            num_head_channels=8,
            num_groups=8,
        ),
        diffusion=DiffusionConfig(prediction_type="v"),
        training=training,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5),
        sampling=SamplingConfig(
            num_sample_steps=5, guidance_scale=2.0, prompts=("a red circle", "a blue square"), samples_per_prompt=2
        ),
    )
