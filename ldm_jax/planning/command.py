"""`ldm plan`: flags, and what they lead to; nothing heavy is imported before they are known to make sense."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ldm_jax.config import Experiment, describe_experiment, experiment_names, load_experiment
from ldm_jax.errors import UserError
from ldm_jax.planning.meshes import fit_mesh, parse_mesh
from ldm_jax.planning.plan import Plan, make_plan
from ldm_jax.planning.plot import draw_scaling
from ldm_jax.planning.report import best, comparison, report
from ldm_jax.planning.request import Request, StageName, check_batch, training_of, with_batch_size
from ldm_jax.planning.search import candidates, scale, search
from ldm_jax.planning.targets import prepare_environment, require_compiler
from ldm_jax.planning.topology import of_size, parse_topology

_PROG = "ldm plan"


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Compile the step of an experiment for accelerators that are not here, and tell what it takes: memory, traffic,
    collectives, and by a roofline time and cost. Nothing is run; results are kept, and found again in seconds."""

    topology: str
    """Accelerators: v4, v5e, v5p or v6e slices and a100, h100 or h200 GPUs, as NAME-CHIPS (v5p-64, h100-8) or
    NAME:SHAPE (v5p:4x4x4). The number counts chips; Google Cloud counts cores for v4 and v5p: its v5p-128 is v5p-64
    here. GPUs come in nodes of eight."""
    mesh: str | None = None
    """Mesh of the devices, such as data=8,fsdp=8; default: that of the experiment."""
    stage: StageName = "diffusion"
    """Step to plan: of the second stage, of the first one, or the sampling of a batch."""
    batch_per_chip: int | None = None
    """Pictures of a step for each chip; default: the experiment's batch over all chips."""
    search: bool = False
    """Try meshes, batches, rematerialisation and attention kernels, and rank them."""
    batches_per_chip: str | None = None
    """Batches that the search tries, such as 4,8,16; default: the one batch."""
    limit: int = 8
    """Most combinations that the search compiles."""
    scale: str | None = None
    """Numbers of chips to compare, such as 4,16,64,256, with the same batch on each chip."""
    price: float | None = None
    """Price of a chip-hour, in any currency."""
    calibration: float = 1.0
    """Measured over predicted time of a step, from a machine where both are known."""
    effort: float = 0.0
    """Effort of the TPU compiler, from -1 (quicker) to 1 (slower, better programs); 0 compiles as training does."""
    out: str | None = None
    """File for the report: .md or .json."""
    plot: str | None = None
    """PNG for --scale; default: beside --out."""
    json: bool = False
    """Print JSON instead of Markdown."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def run_plan(arguments: Sequence[str]) -> None:
    """`ldm plan NAME --topology T [flags]`.

    Raises:
        UserError: flags, topology, mesh or batch make no sense, or the compiler is not installed.
    """
    command = _parse(arguments)
    request = make_request(command)
    sizes = [] if command.scale is None else _numbers("--scale", command.scale)
    for size in sizes:
        of_size(request.topology.chip, size)
    batches = None if command.batches_per_chip is None else _numbers("--batches-per-chip", command.batches_per_chip)
    require_compiler(request.topology)
    prepare_environment(request.topology)
    costs = {"calibration": command.calibration, "price": command.price}
    if sizes:
        plans = scale(request, sizes, **costs)
        text = comparison(plans, f"{request.experiment.name} over chips of {request.topology.chip.name}")
        _plot(command, plans)
    elif command.search:
        tried = candidates(request, batches or [_batch_per_chip(request)])
        plans = search(tried, command.limit, **costs)
        text = comparison(plans, f"{request.experiment.name} on {request.topology.name}") + f"\n{best(plans)}\n"
    else:
        plans = [make_plan(request, **costs)]
        text = report(plans[0])
    _write(command, plans, text)


def _parse(arguments: Sequence[str]) -> PlanCommand:
    flags = list(arguments)
    if flags and flags[0] in ("-h", "--help"):
        name = experiment_names()[0]
    elif not flags or flags[0].startswith("-"):
        raise UserError(f"the experiment's name comes first: {_PROG} NAME --topology v5p-64")
    else:
        name = flags.pop(0)
    experiment = load_experiment(name)
    if not {"-h", "--help"} & set(flags) and not any(flag.partition("=")[0] == "--topology" for flag in flags):
        raise UserError(f"{_PROG} {name} needs --topology, such as --topology v5p-64 or --topology h100-8")
    return tyro.cli(
        PlanCommand,
        prog=f"{_PROG} {name}",
        description=f"{PlanCommand.__doc__}\n\n{describe_experiment(name)}",
        default=PlanCommand(topology="", experiment=experiment),
        args=flags,
        config=(tyro.conf.AvoidSubcommands,),
    )


def make_request(command: PlanCommand) -> Request:
    """What the flags ask for.

    Raises:
        UserError: a flag is out of range, or topology, mesh and batch do not fit each other.
    """
    _check(command)
    topology = parse_topology(command.topology)
    experiment, chips = command.experiment, topology.num_chips
    mesh = fit_mesh(experiment.mesh, chips) if command.mesh is None else parse_mesh(command.mesh, chips)
    if command.batch_per_chip is not None:
        experiment = with_batch_size(experiment, command.stage, command.batch_per_chip * chips)
    options = ()
    if command.effort:
        if topology.chip.platform != "tpu":
            raise UserError(f"--effort={command.effort:g} is understood by the TPU compiler alone; leave it out")
        options = (("exec_time_optimization_effort", command.effort), ("memory_fitting_effort", command.effort))
    request = Request(experiment=experiment, stage=command.stage, topology=topology, mesh=mesh, options=options)
    if not command.search and command.scale is None:
        check_batch(request)
    return request


def _check(command: PlanCommand) -> None:
    for name in ("batch_per_chip", "price", "calibration", "limit"):
        value = getattr(command, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')}={value} must be greater than 0")
    if not -1 <= command.effort <= 1:
        raise UserError(f"--effort={command.effort:g} must lie between -1 and 1")
    if command.search and command.scale is not None:
        raise UserError("--search and --scale are two questions; ask one at a time")
    if command.out is not None and Path(command.out).suffix not in (".md", ".json"):
        raise UserError(f"--out {command.out}: reports are written as .md or .json")
    for flag, given, wanted in (
        ("--plot", command.plot, command.scale),
        ("--batches-per-chip", command.batches_per_chip, command.search or None),
    ):
        if given is not None and wanted is None:
            raise UserError(f"{flag} goes with {'--scale' if flag == '--plot' else '--search'}")


def _numbers(flag: str, text: str) -> list[int]:
    """Whole numbers with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{flag} {text}: give whole numbers with commas between them, such as {flag} 4,16,64")
    return [int(part) for part in parts]


def _batch_per_chip(request: Request) -> int:
    return max(training_of(request.experiment, request.stage).batch_size // request.topology.num_chips, 1)


def _plot(command: PlanCommand, plans: Sequence[Plan]) -> None:
    path = Path(command.out).with_suffix(".png") if command.plot is None and command.out else command.plot
    if path is not None:
        draw_scaling(plans, Path(path))


def _write(command: PlanCommand, plans: Sequence[Plan], text: str) -> None:
    values = [plan.to_json() for plan in plans]
    as_json = json.dumps(values[0] if len(values) == 1 else values, indent=1) + "\n"
    sys.stdout.write(as_json if command.json else text)
    if command.out is not None:
        Path(command.out).write_text(as_json if command.out.endswith(".json") else text)
