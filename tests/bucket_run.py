"""A toy run in any place: `python bucket_run.py PLACE [STEPS]`, joined as `ldm train` joins.

It goes on where it was left. A single process then looks at each checkpoint, and writes its digest, or what damage it
finds there, to stdout; with no steps it does nothing else.
"""

import dataclasses
import json
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ldm_jax import cli
from ldm_jax.config import DistributedConfig, MeshConfig
from ldm_jax.files.places import to_place
from ldm_jax.training.processes import joined


def main(arguments: list[str]) -> None:
    """Train, and write what came out."""
    place, steps = to_place(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    with joined(DistributedConfig(start_seconds=120.0)):
        import jax
        from test_loop import CONFIG, ROOT, Toy

        from ldm_jax import sharding
        from ldm_jax.training.checkpoint_contents import digest_checkpoint
        from ldm_jax.training.loop import run_stage
        from ldm_jax.training.run_folder import RunFolder
        from ldm_jax.training.seals import DamagedCheckpoint

        run = RunFolder(place)
        if steps:
            training = dataclasses.replace(
                CONFIG, num_steps=steps, eval_every=5, sample_every=10**6, checkpoint_every=5, keep_checkpoints=3
            )
            toy = Toy(place, sharding.make_mesh(MeshConfig()), training)
            run_stage(toy.stage(), run, toy.mesh, ROOT)
        if jax.process_count() > 1:
            return
        checkpoints, found = run.checkpoints("toy"), {}
        for step in checkpoints.steps():
            try:
                checkpoints.verify(step)
                found[step] = digest_checkpoint(checkpoints.folder(step), step, 8 * step)
            except DamagedCheckpoint as error:
                found[step] = str(error)
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
