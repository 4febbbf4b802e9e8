"""Class-conditional LDM-4 on ImageNet at 256 pixels: zoo/cin256-v2 for many accelerators.

    python train.py imagenet256_ldm4 --data.source.directory TFDS_DIR [--first-stage.run RUN]

Needs `imagenet2012` prepared by TFDS as array_record. Models, schedule and loss are those of the original
(400.9 M-parameter U-Net); ours are bfloat16, the mirrored pictures, a moving average, warm-up, clipping, and a first
stage of larger batches. Planned for 64 accelerators at a global batch of 1024. The original reports FID 3.6 with
guidance (CompVis/latent-diffusion, news of April 2022). The first stage is that of zoo/vq-f4, LPIPS and discriminator
included (the extra `perceptual`).

Time and result: not measured.
"""

import dataclasses

from ldm_jax.config import Experiment, OptimizerConfig, TrainingConfig, load_experiment


def get_config() -> Experiment:
    """ImageNet in 64x64x3 latents."""
    original = load_experiment("zoo/cin256-v2")
    training = TrainingConfig(
        batch_size=1024, num_steps=400_000, log_every=100, eval_every=5000, sample_every=10_000, checkpoint_every=5000
    )
    first = original.first_stage
    optimizer = OptimizerConfig(learning_rate=1e-4, beta1=0.5, beta2=0.9, weight_decay=0.0, warmup_steps=5000)
    return dataclasses.replace(
        original,
        name="imagenet256_ldm4",
        compute_dtype="bfloat16",
        data=dataclasses.replace(original.data, horizontal_flip=True, num_threads=32),
        first_stage=dataclasses.replace(
            first,
            training=dataclasses.replace(training, batch_size=256, num_steps=500_000),
            optimizer=optimizer,
            discriminator=first.discriminator and dataclasses.replace(first.discriminator, optimizer=optimizer),
        ),
        training=training,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000),
    )
