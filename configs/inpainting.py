"""Inpainting as LDM's: the latents of the picture with holes and the mask beside the noisy latent (7 channels there).

    python train.py inpainting [--first-stage.run runs/scenes]
    python sample.py runs/inpainting                                                     # of held-out scenes
    python sample.py runs/inpainting --given picture=cat.png --given mask=hole.png       # both of 64 x 64 pixels

Hardware: two CPU cores. Time and result at this length: not measured; what it draws after 700 steps is in
docs/tasks_trained.md.
"""

from dataclasses import replace

from ldm_jax.config import Experiment, MaskedPicture, Unconditional, load_experiment


def get_config() -> Experiment:
    """Latents of 8 channels, so 8 + 1 channels are concatenated."""
    scenes = load_experiment("scenes")
    return replace(
        scenes,
        name="inpainting",
        conditioning=Unconditional(),
        given=MaskedPicture(order="ldm"),
        denoiser=replace(scenes.denoiser, attention="self", concat_channels=9),
        diffusion=replace(scenes.diffusion, cond_drop_prob=0.0),
        sampling=replace(scenes.sampling, guidance_scale=1.0, prompts=()),
    )
