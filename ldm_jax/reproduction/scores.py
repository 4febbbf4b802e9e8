"""A score computed again: the same flags on the same pictures with the same networks, compared number by number."""

import dataclasses
from typing import Any

from ldm_jax.errors import UserError
from ldm_jax.evaluation.command import EvaluateCommand, check
from ldm_jax.evaluation.report import command_from_json
from ldm_jax.evaluation.run import evaluate_target
from ldm_jax.files.places import Place
from ldm_jax.manifest import Manifest
from ldm_jax.reproduction.outcome import Again, Compared


def reproduce_scores(manifest: Manifest, folder: Place, out: Place, model: str | None = None) -> Again:
    """Score again into `out`; `model` is where the target now lies, if not where the manifest says.

    Raises:
        UserError: the flags are not known to this version, or pictures, models or weights are gone or changed.
    """
    command = _command(manifest, folder)
    command = dataclasses.replace(command, out=str(out), export_samples=None, export_statistics=None, json=False)
    if model is not None:
        command = dataclasses.replace(command, target=model)
    check(command)
    _, record = evaluate_target(command, manifest)
    was, now = (_by_name(values) for values in (manifest, record))
    return Again(out, record, [Compared(name, was.get(name), now.get(name)) for name in {**was, **now}])


def _command(manifest: Manifest, folder: Place) -> EvaluateCommand:
    try:
        return command_from_json(manifest["config"])
    except TypeError as error:
        raise UserError(
            f"the score in {folder} was made with flags that this version does not know ({error})"
        ) from None


def _by_name(record: Manifest) -> dict[str, dict[str, Any]]:
    """What a score is, without what names and explains it."""
    kept = ("value", "low", "high", "floor", "num_samples", "num_reference")
    return {score["name"]: {name: score.get(name) for name in kept} for score in record["results"]["scores"]}
