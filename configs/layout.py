"""Layout-to-image: scenes from the boxes and groups of their objects, each a token of a transformer.

    python train.py layout [--first-stage.run runs/scenes]
    python sample.py runs/layout                                   # of held-out scenes
    python sample.py runs/layout --given boxes.json

boxes.json is a list such as [{"label": "food-drink", "left": 0.1, "top": 0.2, "right": 0.5, "bottom": 0.6}].
Hardware: two CPU cores. Time and result at this length: not measured; after 2,000 steps objects lie in their boxes, as
docs/tasks_trained.md shows.
"""

from dataclasses import replace

from ldm_jax.config import Experiment, Layout, TextConditioning, load_experiment


def get_config() -> Experiment:
    """Corners on a grid of 32 x 32, and room for four objects, each of them one place of the context."""
    scenes = load_experiment("scenes")
    return replace(
        scenes,
        name="layout",
        conditioning=TextConditioning(
            tokens="boxes",
            tokens_per_box=1,
            vocab_size=1025,
            context_length=12,
            context_dim=128,
            num_layers=1,
            num_heads=4,
        ),
        given=Layout(),
        sampling=replace(scenes.sampling, guidance_scale=2.0, prompts=()),
    )
