"""Retrieval-augmented generation: OpenMoji pictograms from the embeddings of four that look alike.

    python train.py neighbours
    python sample.py runs/neighbours                               # of neighbours of held-out pictures
    python sample.py runs/neighbours --given photo.png             # of neighbours of any picture

The embedding is a plain one of edges and colours (ldm_jax/data/given/descriptor.py), as CLIP's does not come with this
project.

Hardware: two CPU cores. Time and result at this length: not measured; what it draws after 1,800 steps is in
docs/tasks_trained.md.
"""

from dataclasses import replace

from ldm_jax.config import EmbeddingConditioning, Experiment, Neighbours, load_experiment


def get_config() -> Experiment:
    """The pictures and the first stage of the demo."""
    openmoji = load_experiment("openmoji")
    return replace(
        openmoji,
        name="neighbours",
        conditioning=EmbeddingConditioning(context_dim=176, context_length=4),
        given=Neighbours(),
        sampling=replace(openmoji.sampling, guidance_scale=2.0, prompts=()),
    )
