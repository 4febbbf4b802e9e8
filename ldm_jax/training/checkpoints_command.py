"""`ldm checkpoints`: what a run has saved, whether it is whole, what is in it, and one digest of it."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from ldm_jax.errors import UserError
from ldm_jax.files.places import to_place
from ldm_jax.training.checkpoint_contents import ArrayInfo, digest_checkpoint, read_contents
from ldm_jax.training.checkpoints import Checkpoints
from ldm_jax.training.run_folder import STAGES, RunFolder
from ldm_jax.training.seals import DamagedCheckpoint

_FOLDERS = (*STAGES, *(f"{stage}_snapshots" for stage in STAGES))
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, kw_only=True)
class CheckpointsCommand:
    """List, verify, show or digest the checkpoints of a run; nothing is changed, and no accelerator is used.

    list: every step with its size, age and metrics. verify: every file against its checksum; exit status 1 if anything
    is damaged. show: the tree of arrays. digest: one SHA-256 of step, parameters, averages, optimizer state and
    position in the data, equal for equal numbers on any layout.
    """

    action: tyro.conf.Positional[Literal["list", "verify", "show", "digest"]]
    """What to do."""
    run: tyro.conf.Positional[str]
    """Folder of the run, or its gs:// or s3:// prefix."""
    stage: (
        Literal[
            "autoencoder",
            "diffusion",
            "classifier",
            "autoencoder_snapshots",
            "diffusion_snapshots",
            "classifier_snapshots",
        ]
        | None
    ) = None
    """Stage, or the snapshots of its averages, to look at; default: all."""
    step: int | None = None
    """Step to look at; default: all (list, verify), or the newest of each stage (show, digest)."""
    json: bool = False
    """Print the result as JSON."""


def run_checkpoints(command: CheckpointsCommand) -> int:
    """Do what was asked and print it; 1 if `verify` finds damage.

    Raises:
        UserError: there is no such run, stage or step, or what is to be shown or digested is damaged.
    """
    run = RunFolder(to_place(command.run))
    stages = _stages(run, command.stage)
    act: Callable[[CheckpointsCommand, RunFolder, dict[str, Checkpoints]], list[dict[str, Any]]] = {
        "list": _list,
        "verify": _verify,
        "show": _show,
        "digest": _digest,
    }[command.action]
    rows = act(command, run, stages)
    write = _as_json if command.json else _AS_TEXT[command.action]
    sys.stdout.write(write(rows) + "\n")
    return 1 if command.action == "verify" and any(row["damage"] for row in rows) else 0


def _stages(run: RunFolder, stage: str | None) -> dict[str, Checkpoints]:
    found = {name: run.checkpoints(name) for name in _FOLDERS if stage in (None, name)}
    found = {name: c for name, c in found.items() if c.steps() or c.unsealed()}
    if not found:
        raise UserError(
            f"{run.path} has no checkpoints{f' of its {stage} stage' if stage else ''}; is it a run folder?"
        )
    return found


def _steps(command: CheckpointsCommand, name: str, checkpoints: Checkpoints, known: Sequence[int]) -> Sequence[int]:
    """The steps that are meant, of those there are."""
    if command.step is None:
        return known if command.action in ("list", "verify") else known[-1:]
    if command.step not in known and (command.stage is not None or not known):
        raise UserError(
            f"the {name} stage has no checkpoint of step {command.step} in {checkpoints.directory}; it has "
            f"{', '.join(map(str, known)) or 'none'}"
        )
    return [step for step in known if step == command.step]


def _every(command: CheckpointsCommand, stages: dict[str, Checkpoints], *, unsealed: bool) -> list[tuple[str, int]]:
    """Stage and step of each checkpoint that is meant."""
    found = []
    for name, checkpoints in stages.items():
        known = sorted({*checkpoints.steps(), *(checkpoints.unsealed() if unsealed else ())})
        found += [(name, step) for step in _steps(command, name, checkpoints, known)]
    if not found:
        raise UserError(f"no stage has a checkpoint of step {command.step}; `ldm checkpoints list` tells what there is")
    return found


def _list(command: CheckpointsCommand, run: RunFolder, stages: dict[str, Checkpoints]) -> list[dict[str, Any]]:
    return [_listed(stages[name], name, step) for name, step in _every(command, stages, unsealed=True)]


def _listed(checkpoints: Checkpoints, name: str, step: int) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": name, "step": step, "bytes": None, "saved": None, "metrics": {}, "state": "whole"}
    if step not in checkpoints.steps():
        return {**row, "state": "unsealed"}
    try:
        seal = checkpoints.seal(step)
        row |= {"bytes": seal.size, "saved": seal.time, "metrics": dict(seal.metrics)}
        checkpoints.verify(step, contents=False)
    except DamagedCheckpoint as error:
        row["state"] = f"damaged: {error}"
    return row


def _verify(command: CheckpointsCommand, run: RunFolder, stages: dict[str, Checkpoints]) -> list[dict[str, Any]]:
    rows = []
    for name, step in _every(command, stages, unsealed=True):
        rows.append({"stage": name, "step": step, "damage": _damage(stages[name], step)})
    return rows


def _damage(checkpoints: Checkpoints, step: int) -> str | None:
    if step not in checkpoints.steps():
        return f"checkpoint {checkpoints.folder(step)} has no seal: saving or deleting it was interrupted or goes on"
    try:
        checkpoints.verify(step)
    except DamagedCheckpoint as error:
        return str(error)
    return None


def _show(command: CheckpointsCommand, run: RunFolder, stages: dict[str, Checkpoints]) -> list[dict[str, Any]]:
    rows = []
    for name, step in _every(command, stages, unsealed=False):
        arrays = [_described(info) for info in read_contents(stages[name].folder(step))]
        rows.append({"stage": name, "step": step, "arrays": arrays})
    return rows


def _described(info: ArrayInfo) -> dict[str, Any]:
    return {"path": "/".join(info.path), "shape": list(info.shape), "dtype": info.dtype.name, "bytes": info.nbytes}


def _digest(command: CheckpointsCommand, run: RunFolder, stages: dict[str, Checkpoints]) -> list[dict[str, Any]]:
    rows = []
    for name, step in _every(command, stages, unsealed=False):
        stages[name].verify(step)
        digest = digest_checkpoint(stages[name].folder(step), step, run.examples_at(name, step))
        rows.append({"stage": name, "step": step, "sha256": digest})
    return rows


def _as_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps({"checkpoints": rows})


def _list_text(rows: list[dict[str, Any]]) -> str:
    lines = [("stage", "step", "size", "age", "metrics", "state")]
    for row in rows:
        metrics = ", ".join(f"{name} {value:.6g}" for name, value in row["metrics"].items()) or "-"
        lines.append((row["stage"], str(row["step"]), _size(row["bytes"]), _age(row["saved"]), metrics, row["state"]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _verify_text(rows: list[dict[str, Any]]) -> str:
    return "\n".join(f"{row['stage']} {row['step']}: {row['damage'] or 'whole'}" for row in rows)


def _show_text(rows: list[dict[str, Any]]) -> str:
    lines: list[str] = []
    for row in rows:
        total = sum(array["bytes"] for array in row["arrays"])
        lines.append(f"{row['stage']} {row['step']}: {len(row['arrays'])} arrays, {_size(total)}")
        lines += _tree([(array["path"].split("/"), array) for array in row["arrays"]])
    return "\n".join(lines)


def _tree(arrays: list[tuple[list[str], dict[str, Any]]], depth: int = 1) -> list[str]:
    """One line for an array and for each group of them, the group with its size."""
    lines: list[str] = []
    for name in dict.fromkeys(path[0] for path, _ in arrays):
        inside = [(path[1:], array) for path, array in arrays if path[0] == name]
        size = _size(sum(array["bytes"] for _, array in inside))
        if inside[0][0]:
            lines += [f"{'  ' * depth}{name}/  {size}", *_tree(inside, depth + 1)]
        else:
            array = inside[0][1]
            lines.append(f"{'  ' * depth}{name}  {array['shape']} {array['dtype']}  {size}")
    return lines


def _digest_text(rows: list[dict[str, Any]]) -> str:
    return "\n".join(f"{row['stage']} {row['step']} {row['sha256']}" for row in rows)


_AS_TEXT: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "list": _list_text,
    "verify": _verify_text,
    "show": _show_text,
    "digest": _digest_text,
}


def _size(count: int | None) -> str:
    if count is None:
        return "?"
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{count / 1024**power:.4g} {_UNITS[power]}"


def _age(saved: float | None) -> str:
    """For people: a clock that was set since then makes it wrong, and nothing goes by it."""
    if saved is None:
        return "?"
    seconds = time.time() - saved
    if seconds < 0:
        return "from the future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
