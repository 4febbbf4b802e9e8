"""An experiment file for runs in processes of their own: tiny, and nothing in it imports jax."""

import os
from dataclasses import replace

from ldm_jax.config import Experiment, MeshConfig, Shapes, load_experiment


def get_config() -> Experiment:
    """Twenty steps of each stage, or as many as $SMALL_STEPS, on 8 x 8 pictures; the data lie in $LDM_JAX_CACHE."""
    smoke = load_experiment("smoke")
    steps = int(os.environ.get("SMALL_STEPS", "20"))

    def shorten(steps: int):
        return replace(
            smoke.training,
            **{"batch_size": 8, "gradient_accumulation": 1, "num_steps": steps, "log_every": 1, "eval_every": 10},
            **{"sample_every": 10, "checkpoint_every": 5, "keep_checkpoints": 3},
        )

    autoencoder = replace(
        smoke.first_stage.autoencoder,
        **{"base_channels": 8, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_levels": ()},
        **{"latent_channels": 2, "num_groups": 4, "patch_size": 1},
    )
    return replace(
        smoke,
        name="small",
        data=replace(smoke.data, source=Shapes(num_examples=20), image_size=8, num_threads=0),
        first_stage=replace(
            smoke.first_stage, autoencoder=autoencoder, reconstruction_loss="l2", training=shorten(min(steps, 20))
        ),
        denoiser=replace(
            smoke.denoiser,
            **{"base_channels": 16, "channel_mult": (1,), "num_res_blocks": 1, "attention_levels": (0,)},
            **{"num_groups": 4, "num_head_channels": 8},
        ),
        training=shorten(steps),
        sampling=replace(smoke.sampling, num_sample_steps=2, samples_per_prompt=2),
        mesh=MeshConfig(data=2),
    )
