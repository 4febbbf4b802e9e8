"""A run whose first stage is there without having been trained, for tests of what encodes with it."""

import dataclasses
from pathlib import Path

from tiny import one_device_mesh, random_params, tiny_experiment

from ldm_jax.config import Experiment, Shapes
from ldm_jax.model import Params, make_model
from ldm_jax.training.run_folder import RunFolder

SIZE = 40


def encodable_run(path: Path, data_cache: Path, size: int = SIZE) -> tuple[Experiment, Params]:
    """Write the run, with `size` training pictures, and give what it consists of."""
    tiny = tiny_experiment(data_cache)
    experiment = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, source=Shapes(num_examples=size)))
    params = {"autoencoder": random_params(make_model(experiment, one_device_mesh()))["autoencoder"]}
    run = RunFolder(path)
    run.open(experiment)
    checkpoints = run.checkpoints("autoencoder")
    checkpoints.save(experiment.first_stage.training.num_steps, {"model": params})
    checkpoints.wait()
    return experiment, params
