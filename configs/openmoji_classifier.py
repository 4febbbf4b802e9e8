"""A classifier of noisy latents of the demo, into the nine groups of pictograms, to guide it or another run by.

    python train.py openmoji_classifier --first-stage.run runs/openmoji
    python sample.py runs/openmoji --class-label flags --classifier runs/openmoji_classifier --classifier-scale 3

Hardware: two CPU cores. Time and result: not measured.
"""

from dataclasses import replace

from ldm_jax.config import ClassifierConfig, Experiment, Unconditional, load_experiment


def get_config() -> Experiment:
    """On the demo's pictures, first stage and schedule; the denoiser of this experiment is not used."""
    openmoji = load_experiment("openmoji")
    return replace(
        openmoji,
        name="openmoji_classifier",
        conditioning=Unconditional(),
        classifier=ClassifierConfig(num_classes=9),
        denoiser=replace(openmoji.denoiser, attention="self"),
        training=replace(openmoji.training, num_steps=2000),
        optimizer=replace(openmoji.optimizer, weight_decay=0.05),
        sampling=replace(openmoji.sampling, prompts=()),
    )
