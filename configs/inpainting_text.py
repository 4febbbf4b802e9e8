"""Inpainting as Stable Diffusion's: mask and latents beside the noisy latent, and a caption (9 channels there).

    python train.py inpainting_text [--first-stage.run runs/scenes]
    python sample.py runs/inpainting_text --prompt "panda and pie"                       # of held-out scenes
    python sample.py runs/inpainting_text --prompt "pie" --given picture=cat.png --given mask=hole.png

Hardware: two CPU cores. Time and result at this length: not measured; what it draws after 600 steps is in
docs/tasks_trained.md.
"""

from dataclasses import replace

from ldm_jax.config import Experiment, MaskedPicture, load_experiment


def get_config() -> Experiment:
    """The caption says what may be in the holes."""
    scenes = load_experiment("scenes")
    return replace(
        scenes,
        name="inpainting_text",
        given=MaskedPicture(order="sd"),
        denoiser=replace(scenes.denoiser, concat_channels=9),
    )
