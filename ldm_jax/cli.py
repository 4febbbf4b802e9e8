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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ldm_jax.config import (
    LARGEST,
    ClippingKind,
    Experiment,
    MeshConfig,
    SamplerName,
    SamplingConfig,
    SigmaSpacing,
    Spacing,
    describe_experiment,
    experiment_names,
    load_experiment,
    read_manifest,
    restore_experiment,
)
from ldm_jax.errors import UserError

DEFAULT_EXPERIMENT = "openmoji"

MAX_CPU_DEVICES = 256
"""A mesh of more is refused for want of devices, before each of them starts its threads."""

logger = logging.getLogger("ldm_jax")


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train an experiment, or go on with it where it was left: the same command in the same folder."""

    run_dir: str | None = None
    """Folder of the run; default: runs/NAME."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class SampleCommand:
    """Draw pictures with a trained run."""

    run: tyro.conf.Positional[str | None] = None
    """Folder of the run."""
    model: str | None = None
    """Instead of a run: a model of another system, as `ldm convert` reads it."""
    config: str | None = None
    """YAML of a single file (--model), where it does not lie beside it."""
    tokenizer: str | None = None
    """Folder of the tokenizer, in the format of transformers, of a single file (--model) that takes prompts."""
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-p"])] = ()
    """What to draw; repeat the flag for several: --prompt "red apple" --prompt "angry cat"."""
    class_label: tuple[str, ...] = ()
    """Class to draw, by number or name (class-conditional models); repeat the flag for several."""
    num_samples: int = 4
    """Pictures for each prompt or class."""
    seed: int = 0
    """Root of the noise; picture i of a seed is the same whatever is drawn with it."""
    sampler: SamplerName | None = None
    """Solver; default: that of the run's configuration, as for the flags below."""
    num_sample_steps: int | None = None
    """Steps from noise to latent."""
    spacing: Spacing | None = None
    """Timesteps visited."""
    sigmas: SigmaSpacing | None = None
    """Noise levels between the first and the last call."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance; 1 is none."""
    eta: float | None = None
    """Share of fresh noise in each DDIM step."""
    churn: float | None = None
    """Noise put back before each step of heun."""
    tolerance: float | None = None
    """Error that a step of adaptive may make."""
    clipping: ClippingKind | None = None
    """Bounds of the estimated clean latent."""
    clip_range: float | None = None
    """Bound of static clipping, and the largest one of dynamic clipping."""
    clip_percentile: float | None = None
    """Share of a sample's values that dynamic clipping leaves as they are."""
    batch_size: int = 16
    """Pictures drawn at once; decides speed and memory, not the pictures."""
    out: str | None = None
    """Folder for the pictures; default: samples/ in the run, samples/NAME for a model of another system."""
    json: bool = False
    """Print the files written as JSON."""


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
    batches = [command.experiment.first_stage.training, command.experiment.training]
    sizes = [training.batch_size // training.gradient_accumulation for training in batches]
    run_dir = Path(command.run_dir or f"runs/{command.experiment.name}")
    start_jax(_cpu_devices_of(run_dir) or cpu_devices_for(command.experiment.mesh, sizes))
    from ldm_jax.experiment import train_experiment

    train_experiment(command.experiment, run_dir)


def sample(arguments: Sequence[str]) -> None:
    """`ldm sample RUN [flags]`."""
    command = tyro.cli(SampleCommand, prog="sample.py", args=list(arguments), config=(tyro.conf.UseAppendAction,))
    if (command.run is None) == (command.model is None):
        raise UserError("give the folder of a run, or --model MODEL of another system")
    if command.run is not None:  # what is wrong with the flags is said before anything heavy is imported
        sampling_config(command, restore_experiment(Path(command.run) / "config.json").sampling)
    start_jax(cpu_devices_for(MeshConfig(), [command.batch_size]))
    from ldm_jax.interop.model_files import open_model
    from ldm_jax.sampling.files import draw_to_files

    source = Path(command.run or command.model or "")
    session = open_model(source, config=_path(command.config), tokenizer=_path(command.tokenizer))
    default = Path(command.run or "") / "samples" / ("" if command.run else session.experiment.name)
    files = draw_to_files(
        session,
        prompts=command.prompt,
        class_labels=command.class_label,
        num_samples=command.num_samples,
        seed=command.seed,
        config=sampling_config(command, session.experiment.sampling),
        batch_size=command.batch_size,
        out=Path(command.out) if command.out else default,
    )
    if command.json:
        sys.stdout.write(json.dumps({"files": [str(file) for file in files]}) + "\n")


def sampling_config(command: SampleCommand, default: SamplingConfig) -> SamplingConfig:
    """The run's sampling configuration with the flags that were given.

    Raises:
        UserError: a number is out of range.
    """
    for name in ("num_samples", "batch_size"):
        if getattr(command, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}={getattr(command, name)} must be at least 1")
    if command.seed < 0:
        raise UserError(f"--seed={command.seed} must not be negative")
    for name in ("seed", "num_samples", "batch_size"):
        if getattr(command, name) > LARGEST:
            raise UserError(f"--{name.replace('_', '-')}={getattr(command, name)} must be at most {LARGEST}")
    names = {f.name for f in dataclasses.fields(default)} & {f.name for f in dataclasses.fields(command)}
    given = {name: getattr(command, name) for name in names if getattr(command, name) is not None}
    return dataclasses.replace(default, **given)


def convert(arguments: Sequence[str]) -> None:
    """`ldm convert SRC DST [flags]`."""
    command = tyro.cli(ConvertCommand, prog="ldm convert", args=list(arguments))
    start_jax(1)
    from ldm_jax.interop.model_files import open_model, save_model

    session = open_model(
        Path(command.source),
        config=_path(command.config),
        variant=command.variant,
        weights=command.weights,
        tokenizer=_path(command.tokenizer),
    )
    dtype = None if command.dtype == "float32" else command.dtype
    save_model(session, Path(command.destination), command.to, dtype)
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
    if command.tolerance is not None and command.tolerance < 0:
        raise UserError(f"--tolerance={command.tolerance} must not be negative")
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


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train,
    "sample": sample,
    "convert": convert,
    "parity": parity,
}


def start_jax(cpu_devices: int) -> None:
    """Set jax up before it is imported: the compilation cache in the user's cache folder, and devices on a CPU.

    XLA runs small layers on one thread of a CPU device, so a device for each core is nearly that much faster. Variables
    that are already set win; on a GPU or TPU the number has no effect.
    """
    from ldm_jax.data.preparation import default_cache_dir

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cpu_devices))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_cache_dir() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def cpu_devices_for(mesh: MeshConfig, batch_sizes: Sequence[int]) -> int:
    """Devices for a CPU: what the mesh asks for, or as many as there are cores and the batches can be split over."""
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    given = min(math.prod(size for size in sizes if size != -1), MAX_CPU_DEVICES)
    if -1 not in sizes:
        return given
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usable = [n for n in range(given, cores + 1, given) if all(size % n == 0 for size in batch_sizes)]
    return max(usable, default=given)


def _cpu_devices_of(run_dir: Path) -> int | None:
    """Devices of a run that was started on a CPU: with as many, it goes on to the same bits."""
    devices: list[str] = read_manifest(run_dir / "manifest.json").get("devices", [])
    return len(devices) if devices and all(device.startswith("cpu:") for device in devices) else None


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
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        logger.error("error: out of memory (%s); use a smaller batch, picture or model", str(error).partition("\n")[0])
        return UserError.exit_code
    except KeyboardInterrupt:
        logger.error("error: interrupted")
        return 130


def main() -> None:
    """Entry point of `ldm`."""
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
