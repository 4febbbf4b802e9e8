"""The `ldm` command: parse, call, done. Heavy imports wait until a command is known to be well formed."""

import dataclasses
import difflib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ldm_jax.allocator import tune_allocator
from ldm_jax.config import (
    DistributedConfig,
    Experiment,
    MeshConfig,
    describe_experiment,
    experiment_names,
    load_experiment,
)
from ldm_jax.config.checks import require_positive_value
from ldm_jax.errors import UserError, is_out_of_memory
from ldm_jax.files.places import Place, require_checkpoints, to_place
from ldm_jax.manifest import NAME, known_manifest

DEFAULT_EXPERIMENT = "openmoji"

MAX_CPU_DEVICES = 256
"""A mesh of more is refused for want of devices, before each of them starts its threads."""

logger = logging.getLogger("ldm_jax")


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train an experiment, or go on with it where it was left: the same command in the same folder."""

    run_dir: str | None = None
    """Folder of the run; default: runs/NAME."""
    profile: bool = False
    """Leave a trace of steps 10 to 12 of each stage for jax's profiler in profile/ of the run; other steps:
    --training.profile-steps FIRST LAST."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Read a model of one system and write it for another; nothing that is there is overwritten."""

    source: tyro.conf.Positional[str]
    """A run, a pipeline or autoencoder of diffusers, or a .ckpt or .safetensors of the original repositories with its
    YAML."""
    destination: tyro.conf.Positional[str]
    """Where to write: a new folder, or for --to original also a new .safetensors."""
    to: Literal["run", "diffusers", "original"] = "run"
    """Format to write: a run of this project, a pipeline of diffusers, or a single file with its YAML."""
    config: str | None = None
    """YAML of a single file, where it does not lie beside it."""
    variant: str | None = None
    """Variant of the weights of diffusers to read, such as fp16."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights of a single file to read: its moving averages, the others, or the averages where it has them."""
    tokenizer: str | None = None
    """Folder of the tokenizer, in the format of transformers, of a single file that takes prompts."""
    ema_sigma_rel: float | None = None
    """Write an average of this relative width, rebuilt from a run's snapshots (--training.ema-profiles)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Numbers to write for another system."""


@dataclass(frozen=True, kw_only=True)
class ParityCommand:
    """Compute what another system has computed, from the same weights and inputs, and tell how close it comes."""

    case: tyro.conf.Positional[str | None] = None
    """A folder with io.npz in the format of diffusers, transformers or the original, or an .npz of a sampler."""
    layers: str | None = None
    """Instead of a case: a component or pipeline of diffusers or transformers, which is run here and by PyTorch (the
    parity extra) on random inputs, to compare every layer and gradient."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Numbers to compute the layers in; default: both, one after the other."""
    gradient: bool = True
    """Compare the gradients of the layers too."""
    size: int | None = None
    """Side of the input of the layers: latents of a U-Net, pixels of an autoencoder; default: a small one."""
    tolerance: float | None = None
    """Largest relative error; default: 1e-4 for one pass, 2e-3 for a whole run; by layers, 1e-4 forward and 1e-3 for
    gradients in float32, 0.1 and 0.17 in bfloat16."""
    json: bool = False
    """Print the result as JSON."""


def train(arguments: Sequence[str]) -> None:
    """`ldm train [NAME] [flags]`."""
    name, flags = DEFAULT_EXPERIMENT, list(arguments)
    if flags and not flags[0].startswith("-"):
        name = flags.pop(0)
    names = experiment_names()
    for before, word in itertools.pairwise(flags):
        if word in names and before != "--name":
            raise UserError(f"the experiment's name comes first: train.py {word} {before} ...")
    command = tyro.cli(
        TrainCommand,
        prog=f"train.py {name}",
        description=f"{TrainCommand.__doc__}\n\n{describe_experiment(name)}\n\nExperiments: {', '.join(names)} "
        f"(default {DEFAULT_EXPERIMENT}), or a .py file with a get_config().",
        default=TrainCommand(experiment=load_experiment(name)),
        args=flags,
        config=(tyro.conf.AvoidSubcommands,),
    )
    sizes = batch_sizes_of(command.experiment)
    run_dir = to_place(command.run_dir or f"runs/{command.experiment.name}")
    require_checkpoints(run_dir)
    processes = num_processes_of(command.distributed)
    start_jax(_cpu_devices_of(run_dir / NAME, processes) or cpu_devices_for(command.experiment.mesh, sizes, processes))
    from ldm_jax.training.processes import joined

    with joined(command.distributed):
        from ldm_jax.experiment import train_experiment

        train_experiment(_profiled(command.experiment) if command.profile else command.experiment, run_dir)


def _profiled(experiment: Experiment) -> Experiment:
    """The experiment with a trace of both stages, of the default steps where it names none."""
    steps = experiment.training.profile_steps or (10, 12)
    first = dataclasses.replace(
        experiment.first_stage,
        training=dataclasses.replace(
            experiment.first_stage.training, profile_steps=experiment.first_stage.training.profile_steps or steps
        ),
    )
    training = dataclasses.replace(experiment.training, profile_steps=steps)
    return dataclasses.replace(experiment, first_stage=first, training=training)


def launch(arguments: Sequence[str]) -> int:
    """`ldm launch --processes N -- COMMAND ...`."""
    from ldm_jax.training.launcher import launch

    return launch(arguments)


def sample(arguments: Sequence[str]) -> None:
    """`ldm sample RUN [flags]`."""
    from ldm_jax.sampling.flags import devices_of, parse_sample

    asked = parse_sample(arguments)
    devices = devices_of(to_place(asked.again)) if asked.again else None
    processes = num_processes_of(asked.distributed)
    start_jax(devices or cpu_devices_for(asked.mesh, [asked.batch_size], processes))
    from ldm_jax.training.processes import joined

    with joined(asked.distributed):
        from ldm_jax.interop.model_files import open_model
        from ldm_jax.sampling import command

        files = (command.draw_again if asked.again else command.draw)(asked, open_model)
    _tell_files(files, asked.json)


def grid(arguments: Sequence[str]) -> None:
    """`ldm grid RUN [flags]`."""
    from ldm_jax.sampling.flags import parse_grid

    asked = parse_grid(arguments)
    start_jax(cpu_devices_for(MeshConfig(), [asked.batch_size]))
    from ldm_jax.interop.model_files import open_model
    from ldm_jax.sampling import command

    _tell_files([command.draw_grid_of(asked, open_model)], asked.json)


def _tell_files(files: Sequence[Place], as_json: bool) -> None:
    if as_json and files:  # of several processes the first one has them
        sys.stdout.write(json.dumps({"files": [str(file) for file in files]}) + "\n")


def convert(arguments: Sequence[str]) -> None:
    """`ldm convert SRC DST [flags]`."""
    command = tyro.cli(ConvertCommand, prog="ldm convert", args=list(arguments))
    destination = to_place(command.destination)
    if not isinstance(destination, Path):
        raise UserError(f"{destination}: a model is written to a folder of this machine; copy it there afterwards")
    start_jax(1)
    from ldm_jax.interop.model_files import open_model, save_model

    session = open_model(
        to_place(command.source),
        config=_path(command.config),
        variant=command.variant,
        weights=command.weights,
        tokenizer=_path(command.tokenizer),
        ema_sigma_rel=command.ema_sigma_rel,
    )
    dtype = None if command.dtype == "float32" else command.dtype
    save_model(session, destination, command.to, dtype)
    logger.info("%s is written as %s", command.destination, command.to)


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)


def parity(arguments: Sequence[str]) -> int:
    """`ldm parity CASE` or `ldm parity --layers FOLDER`; 1 if something is further off than the tolerance."""
    command = tyro.cli(ParityCommand, prog="ldm parity", args=list(arguments))
    _check_parity(command)
    start_jax(1)
    if command.layers is not None:
        return _parity_of_layers(command, Path(command.layers))
    from ldm_jax.interop.cases.comparison import as_json, as_table
    from ldm_jax.interop.cases.parity import run_case

    rows = run_case(Path(command.case or ""), command.tolerance)
    sys.stdout.write((as_json if command.json else as_table)(rows) + "\n")
    return 0 if all(row.passed for row in rows) else 1


def _check_parity(command: ParityCommand) -> None:
    """Refuse flags that do not go together."""
    if command.tolerance is not None:
        require_positive_value("--tolerance", command.tolerance)
    if (command.case is None) == (command.layers is None):
        raise UserError("give a case, or --layers FOLDER")
    given = {
        "--dtype": command.dtype is not None,
        "--no-gradient": not command.gradient,
        "--size": command.size is not None,
    }
    if command.layers is None and any(given.values()):
        raise UserError(f"{', '.join(flag for flag, is_given in given.items() if is_given)} goes with --layers FOLDER")


def _parity_of_layers(command: ParityCommand, folder: Path) -> int:
    from ldm_jax.interop.layers import as_report, as_report_json, run_layers

    sections = run_layers(
        folder,
        dtypes=("float32", "bfloat16") if command.dtype is None else (command.dtype,),
        gradient=command.gradient,
        size=command.size,
        tolerance=command.tolerance,
    )
    sys.stdout.write((as_report_json if command.json else as_report)(sections) + "\n")
    return 0 if all(section.first is None for section in sections) else 1


def evaluate(arguments: Sequence[str]) -> None:
    """`ldm evaluate TARGET [flags]`."""
    from ldm_jax.evaluation.command import evaluate as run_command

    def start(batch_size: int, distributed: DistributedConfig) -> None:
        start_jax(cpu_devices_for(MeshConfig(), [batch_size], num_processes_of(distributed)))

    run_command(arguments, start)


def reproduce(arguments: Sequence[str]) -> int:
    """`ldm reproduce MANIFEST [flags]`; 1 if the results are not the same."""
    from ldm_jax.reproduction.command import reproduce as run_command

    return run_command(arguments, lambda manifest: start_jax(_cpu_devices_of(manifest) or 1))


def report(arguments: Sequence[str]) -> None:
    """`ldm report RUN [RUN ...] [flags]`."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # a training that owns the accelerator may be going on
    start_jax(1)
    from ldm_jax.report.command import report as run_command

    run_command(arguments)


def benchmark(arguments: Sequence[str]) -> int:
    """`ldm benchmark [flags]`; 1 if the numbers are not PyTorch's."""
    from ldm_jax.benchmark.command import run as run_benchmark

    def start(experiment: Experiment) -> None:
        start_jax(cpu_devices_for(experiment.mesh, batch_sizes_of(experiment)))

    return run_benchmark(arguments, start)


def latents(arguments: Sequence[str]) -> int:
    """`ldm latents encode|show|verify ...`; 1 if `verify` finds damage."""
    from ldm_jax.latents.command import run_latents

    def start(batch_size: int, distributed: DistributedConfig) -> None:
        start_jax(cpu_devices_for(MeshConfig(), [batch_size], num_processes_of(distributed)))

    return run_latents(arguments, start)


def plan(arguments: Sequence[str]) -> None:
    """`ldm plan NAME --topology T [flags]`."""
    from ldm_jax.planning.command import run_plan

    run_plan(arguments)


def checkpoints(arguments: Sequence[str]) -> int:
    """`ldm checkpoints list|verify|show|digest RUN`; 1 if `verify` finds damage."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # a training that owns the accelerator may be going on
    start_jax(1)
    from ldm_jax.training.checkpoints_command import CheckpointsCommand, run_checkpoints

    return run_checkpoints(tyro.cli(CheckpointsCommand, prog="ldm checkpoints", args=list(arguments)))


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "reproduce": reproduce,
    "report": report,
    "grid": grid,
    "convert": convert,
    "parity": parity,
    "latents": latents,
    "benchmark": benchmark,
    "plan": plan,
    "checkpoints": checkpoints,
    "launch": launch,
}


def start_jax(cpu_devices: int) -> None:
    """Set jax up before it is imported: the compilation cache in the user's cache folder, and devices on a CPU.

    XLA runs small layers on one thread of a CPU device, so a device for each core is nearly that much faster. Variables
    that are already set win; on a GPU or TPU the number has no effect.
    """
    from ldm_jax.data.preparation import default_cache_dir

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(min(cpu_devices, MAX_CPU_DEVICES)))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_cache_dir() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def batch_sizes_of(experiment: Experiment) -> list[int]:
    """Pictures in a micro-batch of each stage, which devices have to divide among them."""
    trainings = (experiment.first_stage.training, experiment.training)
    return [training.batch_size // training.gradient_accumulation for training in trainings]


def num_processes_of(distributed: DistributedConfig) -> int:
    """Processes among which the devices of a CPU are divided: those that flags or variables tell of."""
    given = distributed.num_processes or os.environ.get("JAX_NUM_PROCESSES", "1")
    return int(given) if str(given).isdecimal() and int(given) > 0 else 1


def cpu_devices_for(mesh: MeshConfig, batch_sizes: Sequence[int], processes: int = 1) -> int:
    """Devices for a CPU: what the mesh asks for, or as many as there are cores and the batches can be split over.

    Of several processes, which are taken to share the cores of this machine, each has its share of them.
    """
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    given = min(math.prod(size for size in sizes if size != -1), MAX_CPU_DEVICES)
    if -1 not in sizes:
        return max(given // processes, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    least = math.lcm(given, processes)
    usable = [n for n in range(least, cores + 1, least) if all(size % n == 0 for size in batch_sizes)]
    return max(usable, default=least) // processes


def _cpu_devices_of(manifest: Place, processes: int = 1) -> int | None:
    """Devices of what was made on a CPU, divided by processes: with as many, it comes to the same bits."""
    devices: list[str] = known_manifest(manifest).get("devices", [])
    if not devices or len(devices) % processes or not all(device.startswith("cpu:") for device in devices):
        return None
    return len(devices) // processes


def run(command: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Run a command and return its exit status; a user's error is one line, not a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    try:
        return command(arguments) or 0
    except UserError as error:
        logger.error("error: %s", error)
        return error.exit_code
    except OSError as error:  # what the system refuses at a place where no message says more
        logger.error("error: %s", error)
        return UserError.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        logger.error("error: out of memory (%s); use a smaller batch, picture or model", str(error).partition("\n")[0])
        return UserError.exit_code
    except KeyboardInterrupt:
        logger.error("error: interrupted")
        return 130


def main() -> None:
    """Entry point of `ldm`."""
    tune_allocator()
    arguments = sys.argv[1:]
    known = ", ".join(COMMANDS)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: ldm COMMAND ...\n\ncommands: {known}\n`ldm COMMAND --help` tells its flags\n")
        sys.exit(0 if arguments else 2)
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        sys.stderr.write(f"error: unknown command '{name}': {hint}known commands: {known}\n")
        sys.exit(2)
    sys.exit(run(COMMANDS[name], arguments[1:]))
