"""`ldm reproduce`: its flags, and what is said of the result. Nothing heavy is imported here."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, to_place
from ldm_jax.manifest import NAME, Manifest, changed_circumstances, read_manifest
from ldm_jax.reproduction.outcome import Again, as_record, as_text


@dataclass(frozen=True, kw_only=True)
class ReproduceCommand:
    """Make a run, a sample set or a score again, and compare: circumstances, then results.

    On the same kind of machine with the same versions the results are the same to the bit. Exit status 1 if they are
    not. The same command goes on where it was stopped.
    """

    manifest: tyro.conf.Positional[str]
    """A manifest.json, or its folder; a score's file is its own manifest: scores.json, reconstruction.json."""
    out: str | None = None
    """Where it is made again; default: the folder's name with -again."""
    model: str | None = None
    """Where the run now lies that drew the samples or was scored, if not where the manifest says."""
    json: bool = False
    """Print the result as JSON."""


def reproduce(arguments: Sequence[str], start_jax: Callable[[Place], None]) -> int:
    """`ldm reproduce MANIFEST [flags]`; `start_jax` is told the manifest. Returns 1 if results differ.

    Raises:
        UserError: the manifest cannot be used, or what it was made from is gone or changed.
    """
    command = tyro.cli(ReproduceCommand, prog="ldm reproduce", args=list(arguments))
    file = _manifest_file(to_place(command.manifest))
    manifest = read_manifest(file)
    out = _out(command, file)
    work = _work_for(manifest, file)
    if command.model is not None and manifest["kind"] == "run":
        raise UserError(
            f"--model {command.model} means nothing for a run, which is trained from its data; leave it out"
        )
    start_jax(file)
    again = work(manifest, file.parent, out, command.model)
    changed = changed_circumstances(manifest, again.manifest)
    sys.stdout.write((json.dumps(as_record(again, changed)) if command.json else as_text(again, changed)) + "\n")
    return 0 if again.is_same else 1


def _manifest_file(place: Place) -> Place:
    return place / NAME if place.is_dir() else place


def _out(command: ReproduceCommand, file: Place) -> Place:
    """The folder to work in: never the one that is to be reproduced."""
    folder = file.parent.absolute() if hasattr(file.parent, "absolute") else file.parent
    out = to_place(command.out) if command.out else folder.with_name(f"{folder.name}-again")
    if str(out.resolve()) == str(folder.resolve()):
        raise UserError(f"--out {out} is the folder that is to be reproduced; choose another one")
    return out


def _work_for(manifest: Manifest, file: Place) -> Callable[[Manifest, Place, Place, str | None], Again]:
    def start(*arguments: Any) -> Again:
        from ldm_jax.reproduction import runs, samples, scores  # heavy

        works = {"run": runs.reproduce_run, "samples": samples.reproduce_samples, "scores": scores.reproduce_scores}
        return works[manifest["kind"]](*arguments)

    if manifest["kind"] == "model":
        raise UserError(
            f"{file} is of a model that was converted, not trained here; the command that made it: "
            f"{' '.join(map(str, manifest.get('command', [])))}"
        )
    if manifest["kind"] not in ("run", "samples", "scores"):
        raise UserError(f"{file} is of a {manifest['kind']!r}; runs, samples and scores can be reproduced")
    return start
