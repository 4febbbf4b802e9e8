"""Text to image in the latents of a KL autoencoder with factor 8: zoo/txt2img-1p4B for many accelerators.

    python train.py text2image_f8 --data.source.directory PICTURES [--first-stage.run RUN]

PICTURES is a folder of images with captions (a .txt beside each, or metadata.jsonl). Models, schedule and loss are
those of the original: a U-Net of 872.3 M parameters and a text transformer of 542.9 M trained with it
(txt2img-1p4B-eval.yaml of CompVis/latent-diffusion, trained on LAION-400M; its README has no numbers). Ours are a
vocabulary of the same size learned from the captions, bfloat16, warm-up, clipping, and a first stage of larger batches
(that of zoo/kl-f8, LPIPS and discriminator included: the extra `perceptual`). Planned for 64 accelerators at a global
batch of 1024.

Time and result: not measured.
"""

import dataclasses

from ldm_jax.config import Experiment, ImageFolder, OptimizerConfig, TrainingConfig, load_experiment


def get_config() -> Experiment:
    """Captions to pictures of 256 pixels in 32x32x4 latents."""
    original = load_experiment("zoo/txt2img-1p4B")
    training = TrainingConfig(
        batch_size=1024, num_steps=400_000, log_every=100, eval_every=5000, sample_every=10_000, checkpoint_every=5000
    )
    first = original.first_stage
    optimizer = OptimizerConfig(learning_rate=1e-4, beta1=0.5, beta2=0.9, weight_decay=0.0, warmup_steps=5000)
    return dataclasses.replace(
        original,
        name="text2image_f8",
        compute_dtype="bfloat16",
        data=dataclasses.replace(original.data, source=ImageFolder(), num_threads=32),
        first_stage=dataclasses.replace(
            first,
            training=dataclasses.replace(training, batch_size=256, num_steps=250_000),
            optimizer=optimizer,
            discriminator=first.discriminator and dataclasses.replace(first.discriminator, optimizer=optimizer),
        ),
        training=training,
        optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=10_000),
    )
