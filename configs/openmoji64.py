"""Text to image on OpenMoji pictograms of 64 pixels, for pictures worth showing.

    python train.py openmoji64

Hardware: two CPU cores, planned for about two hours. Time and result: not measured.
"""

from dataclasses import replace

from ldm_jax.config import Experiment, load_experiment


def get_config() -> Experiment:
    """The demo at twice the resolution, four times the latents."""
    demo = load_experiment("openmoji")
    return replace(
        demo,
        name="openmoji64",
        data=replace(demo.data, image_size=64),
        first_stage=replace(
            demo.first_stage,
            training=replace(
                demo.first_stage.training, num_steps=3000, eval_every=500, sample_every=1000, checkpoint_every=500
            ),
        ),
        denoiser=replace(demo.denoiser, channel_mult=(1, 2, 3), attention_levels=(1, 2)),
        training=replace(demo.training, num_steps=8000, eval_every=1000, sample_every=2000),
    )
