"""Super-resolution: scenes of 16 pixels, blurred, noisy and compressed, made four times larger.

    python train.py superres [--first-stage.run runs/scenes]
    python sample.py runs/superres                                 # of held-out scenes
    python sample.py runs/superres --given small.png               # of a picture of 16 x 16 pixels

Hardware: two CPU cores. Time and result at this length: not measured; what it draws after 547 steps is in
docs/tasks_trained.md.
"""

from dataclasses import replace

from ldm_jax.config import Experiment, LowResolution, SpatialConditioning, load_experiment


def get_config() -> Experiment:
    """The small picture has the size of the latents, to which it is concatenated."""
    scenes = load_experiment("scenes")
    return replace(
        scenes,
        name="superres",
        conditioning=SpatialConditioning(in_channels=3),
        given=LowResolution(factor=4),
        denoiser=replace(scenes.denoiser, attention="self", attention_levels=(2,), concat_channels=3),
        diffusion=replace(scenes.diffusion, cond_drop_prob=0.0),
        sampling=replace(scenes.sampling, guidance_scale=1.0, prompts=()),
    )
