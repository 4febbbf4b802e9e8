"""A training run made again: the same experiment on the same data, compared by checkpoints and metrics."""

import logging
import os
from typing import Any

from ldm_jax.config import Experiment, from_dict
from ldm_jax.data.latent_source import load_training_data
from ldm_jax.errors import UserError
from ldm_jax.experiment import train_experiment
from ldm_jax.files.places import Place
from ldm_jax.manifest import NAME, Manifest, read_manifest
from ldm_jax.reproduction.outcome import Again, Compared
from ldm_jax.training.logging import read_metrics
from ldm_jax.training.perceptual import fingerprint_constants, read_constants
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

_METRICS = ("loss", "heldout_loss", "grad_norm")
"""What does not depend on time."""


def reproduce_run(manifest: Manifest, folder: Place, out: Place, model: str | None = None) -> Again:
    """Train the experiment of a manifest in `out`, and compare with what it says, or with what lies in `folder`.

    Raises:
        UserError: the run was not finished, its data have changed, or what it started from is gone.
    """
    experiment = from_dict(manifest["config"])
    if not isinstance(experiment, Experiment):
        raise UserError(f"the manifest in {folder} holds a {type(experiment).__name__}, not an Experiment")
    was = _results(manifest, folder, experiment)
    if manifest.get("directory") != os.getcwd():
        logger.info("relative paths of the experiment count from here, not from %s", manifest.get("directory"))
    _check_data(manifest, folder, experiment)
    train_experiment(experiment, out)
    run = RunFolder(out)
    now, again = run.digests(), read_manifest(out / NAME)
    results = [_first_difference(folder / "metrics.jsonl", run.metrics_file)] if _has_metrics(folder) else []
    results += [
        Compared(f"{stage} of step {old['step']}", old["sha256"], _sha(now.get(stage))) for stage, old in was.items()
    ]
    if manifest.get("autoencoder") is not None:
        results.append(Compared("averaged autoencoder", manifest["autoencoder"], again["autoencoder"]))
    return Again(out, again, results)


def _results(manifest: Manifest, folder: Place, experiment: Experiment) -> dict[str, Any]:
    """Digests that the manifest tells, or else those of the checkpoints beside it."""
    run, last = RunFolder(folder), experiment.training.num_steps
    found = manifest["results"] or (run.digests() if run.config_file.exists() else {})
    step = found.get(experiment.second_stage, {}).get("step")
    if step != last:
        state = "has no checkpoints" if step is None else f"has come to step {step} of {last}"
        raise UserError(f"the run of {folder / NAME} is not finished and {state}: there is nothing to compare with yet")
    return found


def _check_data(manifest: Manifest, folder: Place, experiment: Experiment) -> None:
    for split in ("train", "test"):
        known, found = manifest.get("data", {}).get(split), load_training_data(experiment.data, split)
        if isinstance(known, dict) and known.get("fingerprint") != found.info.fingerprint:
            raise UserError(
                f"the {split} split of {known.get('name')} has changed since the run was made: {len(found)} pictures "
                f"of fingerprint {found.info.fingerprint[:12]}, then {known.get('num_pictures')} of "
                f"{str(known.get('fingerprint'))[:12]}; restore the data"
            )
    if manifest.get("data", {}).get("perceptual") is not None:
        RunFolder(folder).check_perceptual(fingerprint_constants(read_constants(experiment.first_stage)))


def _has_metrics(folder: Place) -> bool:
    return (folder / "metrics.jsonl").exists()


def _first_difference(old: Place, new: Place) -> Compared:
    """The first step whose losses differ, or all of them."""
    was, now = _metrics_of(old), _metrics_of(new)
    for (stage, step), values in was.items():
        found = now.get((stage, step))
        if found != values:
            return Compared(f"metrics from step {step} of {stage} on", values, found)
    return Compared("metrics", list(was), list(now))


def _metrics_of(file: Place) -> dict[tuple[str, int], dict[str, float]]:
    lines = read_metrics(file)
    return {(m["stage"], m["step"]): {name: m[name] for name in _METRICS if name in m} for m in lines}


def _sha(result: dict[str, Any] | None) -> str | None:
    return None if result is None else result["sha256"]
