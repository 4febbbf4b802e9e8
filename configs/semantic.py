"""Semantic synthesis: scenes from the group that each of their pixels belongs to.

    python train.py semantic [--first-stage.run runs/scenes]
    python sample.py runs/semantic                                 # of held-out scenes
    python sample.py runs/semantic --given labels.png              # 64 x 64 numbers of groups, 0 the background

Hardware: two CPU cores. Time and result at this length: not measured; what it draws after 700 steps is in
docs/tasks_trained.md.
"""

from dataclasses import replace

from ldm_jax.config import Experiment, LabelMap, SpatialConditioning, load_experiment


def get_config() -> Experiment:
    """Background and nine groups, halved twice as the pictures are, to eight channels."""
    scenes = load_experiment("scenes")
    return replace(
        scenes,
        name="semantic",
        conditioning=SpatialConditioning(in_channels=10, num_stages=2, out_channels=8),
        given=LabelMap(),
        denoiser=replace(scenes.denoiser, attention="self", concat_channels=8),
        sampling=replace(scenes.sampling, guidance_scale=2.0, prompts=()),
    )
