"""`ldm latents`: its three actions and their flags. Nothing heavy is imported here."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ldm_jax.config import (
    LARGEST,
    DistributedConfig,
    Experiment,
    describe_experiment,
    differences,
    experiment_names,
    load_experiment,
    restore_experiment,
)
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, to_place
from ldm_jax.latents.report import Row, as_text, show_set, verify_set

_USAGE = """usage: ldm latents encode CONFIG_OR_RUN [flags]
       ldm latents show DIR [--json]
       ldm latents verify DIR [--json]

encode: every picture of a data set through an autoencoder, once; the same command goes on where it was stopped.
show:   from what a set was made, its spread and its size.
verify: every shard against its checksum; exit status 1 if anything is damaged.
`ldm latents encode --help` tells its flags
"""

StartJax = Callable[[int, DistributedConfig], None]
"""Told how many pictures make a batch, and of the other processes."""


@dataclass(frozen=True, kw_only=True)
class EncodeCommand:
    """Encode the pictures of an experiment, or of a run, with the autoencoder of that run, or of what the experiment
    starts from (--first-stage.run RUN or --start MODEL); training reads them with --data.latents DIR.

    With --data.horizontal-flip mirror images are encoded, too. The same command goes on where it was stopped, and
    mends damaged shards.
    """

    out: str | None = None
    """Folder to write; default: latents/NAME."""
    split: tuple[Literal["train", "test"], ...] = ("train", "test")
    """Parts of the data."""
    sizes: bool = False
    """Keep how each picture was cut: its height and width, top and left of the cut, and height and width of the result,
    which SDXL is told."""
    texts: bool = False
    """Keep the embedding of each caption by a text encoder of CLIP, or by SDXL's two, that is not trained."""
    shard_size: int = 1024
    """Pictures in a shard: so much is done again after an interruption."""
    batch_size: int | None = None
    """Pictures at once on all devices; default: --first-stage.training.batch-size."""
    json: bool = False
    """Print what was written as JSON."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class LookCommand:
    """Show or verify a set of latents; nothing is changed."""

    folder: tyro.conf.Positional[str]
    """What `ldm latents encode` has written: all of it, or the part of one split."""
    json: bool = False
    """Print the result as JSON."""


def run_latents(arguments: Sequence[str], start_jax: StartJax) -> int:
    """`ldm latents encode|show|verify ...`; 1 if `verify` finds damage.

    Raises:
        UserError: bad input.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0 if arguments else 2
    action, *rest = arguments
    if action == "encode":
        return _encode(rest, start_jax)
    if action not in ("show", "verify"):
        raise UserError(f"ldm latents {action} is not known: use encode, show or verify")
    command = tyro.cli(LookCommand, prog=f"ldm latents {action}", args=rest)
    look = show_set if action == "show" else verify_set
    rows = [look(folder) for folder in _sets(Path(command.folder))]
    _tell(rows, as_json=command.json)
    return 1 if action == "verify" and any(row["damage"] for row in rows) else 0


def _tell(rows: list[Row], *, as_json: bool) -> None:
    sys.stdout.write((json.dumps({"latents": rows}) if as_json else as_text(rows)) + "\n")


def _sets(folder: Path) -> list[Path]:
    """The sets in a folder, or the one that it is."""
    if not folder.is_dir():
        raise UserError(f"{folder} {'is no folder' if folder.exists() else 'does not exist'}")
    places = [folder, *(folder / split for split in ("train", "test"))]
    found = [place for place in places if any((place / name).exists() for name in ("manifest.json", "unfinished.json"))]
    if not found:
        raise UserError(f"{folder} holds no latents: neither it nor train/ or test/ in it has a manifest.json")
    return found


def _encode(arguments: Sequence[str], start_jax: StartJax) -> int:
    command, run = parse_encode(arguments)
    check(command)
    batch_size = command.batch_size or command.experiment.first_stage.training.batch_size
    start_jax(batch_size, command.distributed)
    from ldm_jax.latents.encode import encode
    from ldm_jax.training.processes import is_first, joined

    name = command.experiment.name if run is None else run.name
    with joined(command.distributed):
        folders = encode(command, run, Path(command.out or f"latents/{name}").expanduser(), batch_size)
        if is_first():
            _tell([show_set(folder) for folder in folders], as_json=command.json)
    return 0


def parse_encode(arguments: Sequence[str]) -> tuple[EncodeCommand, Place | None]:
    """The flags, and the run if that is what is encoded for.

    Raises:
        UserError: there is no such experiment or run, or a flag has no meaning here.
    """
    flags, run = list(arguments), None
    if flags and flags[0] in ("-h", "--help"):
        name = experiment_names()[0]
    elif not flags or flags[0].startswith("-"):
        raise UserError("the experiment or run comes first: ldm latents encode CONFIG_OR_RUN [flags]")
    else:
        name = flags.pop(0)
    if name not in experiment_names() and (to_place(name) / "config.json").exists():
        run = to_place(name)
    experiment = load_experiment(name) if run is None else restore_experiment(run / "config.json")
    about = describe_experiment(name) if run is None else f"The run {name}."
    command = tyro.cli(
        EncodeCommand,
        prog=f"ldm latents encode {name}",
        description=f"{EncodeCommand.__doc__}\n\n{about}",
        default=EncodeCommand(experiment=experiment),
        args=flags,
        config=(tyro.conf.AvoidSubcommands,),
    )
    if changed := list(differences(experiment.mesh, command.experiment.mesh, "mesh")):
        raise UserError(
            f"--mesh.* divides a model that is trained, and encoding has the whole autoencoder on every device; leave "
            f"it out ({'; '.join(changed)})"
        )
    return command, run


def check(command: EncodeCommand) -> None:
    """Refuse numbers out of range, and places that cannot be written to.

    Raises:
        UserError: naming the flag.
    """
    for name in ("shard_size", "batch_size"):
        value = getattr(command, name)
        if value is not None and not 1 <= value <= LARGEST:
            raise UserError(f"--{name.replace('_', '-')}={value} must be from 1 to {LARGEST}")
    if not command.split:
        raise UserError("--split names none; use train, test or both")
    if command.out is not None and "://" in command.out:
        raise UserError(f"--out={command.out} is in an object store; latents are written to a disk: copy them from it")
