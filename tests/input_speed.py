"""How fast the input pipeline feeds each stage, without any training: `python tests/input_speed.py RUN`.

RUN is a run that has been trained, for its cached latents; prints pictures a second of each stage.
"""

import itertools
import sys
import time
from pathlib import Path

from ldm_jax import cli


def main(run_dir: Path) -> None:
    """Read 200 batches of each stage."""
    cli.start_jax(2)
    from ldm_jax.config import restore_experiment
    from ldm_jax.data.latent_cache import cached_latents
    from ldm_jax.sampling.session import load_session
    from ldm_jax.training.latents import parameter_fingerprint
    from ldm_jax.training.workspace import open_workspace

    experiment = restore_experiment(run_dir / "config.json")
    work = open_workspace(experiment, run_dir)
    first, second = experiment.first_stage.training, experiment.training
    latents = cached_latents(
        run_dir / "latents" / "train.npz",
        work.train,
        lambda image: image,
        config=experiment.data,
        autoencoder=parameter_fingerprint(load_session(run_dir, stage="autoencoder").params),
        batch_size=first.batch_size,
    )
    for name, source, config in (("autoencoder", work.train, first), ("diffusion", latents, second)):
        batches = work.train_batches(source, config, name, 0)
        next(batches)
        began = time.perf_counter()
        for _ in itertools.islice(batches, 200):
            pass
        rate = 200 * config.batch_size / (time.perf_counter() - began)
        sys.stdout.write(f"{name}: {rate:.0f} pictures/s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
