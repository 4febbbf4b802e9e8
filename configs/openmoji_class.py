"""Class-conditional pictograms: the nine groups of OpenMoji, on the demo's pictures, first stage and schedule.

    python train.py openmoji_class --first-stage.run runs/openmoji
    python sample.py runs/openmoji_class --class-label flags --class-label animals-nature

Hardware: two CPU cores. Time and result at this length: not measured; what it draws after 1,500 steps is in
docs/tasks_trained.md.
"""

from dataclasses import replace

from ldm_jax.config import ClassConditioning, Experiment, load_experiment


def get_config() -> Experiment:
    """As the demo, told the group in place of a caption."""
    openmoji = load_experiment("openmoji")
    return replace(
        openmoji,
        name="openmoji_class",
        conditioning=ClassConditioning(num_classes=9, context_dim=128),
        sampling=replace(openmoji.sampling, prompts=()),
    )
