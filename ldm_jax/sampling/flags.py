"""The flags of `ldm sample` and `ldm grid`, and what can be said of them before anything heavy is imported."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from ldm_jax.config import (
    LARGEST,
    ClippingKind,
    DistributedConfig,
    GuidanceCalls,
    MeshConfig,
    SamplerName,
    SamplingConfig,
    SigmaSpacing,
    Spacing,
    restore_experiment,
)
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place, to_place
from ldm_jax.pictures import read_picture


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
    ema_sigma_rel: float | None = None
    """Draw with an average of this relative width, rebuilt from the run's snapshots (--training.ema-profiles)."""
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-p"])] = ()
    """What to draw; repeat the flag for several: --prompt "red apple" --prompt "angry cat". Words can be weighted:
    (word) by 1.1, [word] by 1 / 1.1, (word:1.3) by 1.3."""
    prompts: str | None = None
    """File of prompts: one a line, or a .jsonl of objects with prompt, negative, seed and guidance."""
    negative_prompt: tuple[str, ...] = ()
    """What guidance leads away from: one for all prompts, or one for each by repeating the flag."""
    prompt_to: tuple[str, ...] = ()
    """Interpolate from the prompt to this one: one for all prompts, or one for each."""
    frames: int = 8
    """Pictures from a prompt, noise or picture to where it leads, both ends among them."""
    interpolation: Literal["slerp", "lerp"] = "slerp"
    """Way between two conditions: along a sphere or straight."""
    prompt_syntax: Literal["weights", "plain"] = "weights"
    """Whether brackets in a prompt are weights or text."""
    long_prompts: Literal["chunks", "cut"] = "chunks"
    """Whether a prompt longer than the encoder's context is encoded in chunks of that length, or cut."""
    class_label: tuple[str, ...] = ()
    """Class to draw, by number or name (class-conditional models); repeat the flag for several."""
    given: tuple[str, ...] = ()
    """What the model is given beside prompt and class, as files: a small picture, a label map, boxes as JSON. A model
    of several parts has them named (--given picture=cat.png --given mask=hole.png); repeat the flag for several
    pictures. Default: that of a few held-out examples."""
    heldout: tuple[int, ...] = ()
    """The same from held-out examples, by their number; repeat the flag for several."""
    image: str | None = None
    """Picture to start from: image-to-image, and inpainting with --mask or --outpaint."""
    strength: float | None = None
    """Share of the steps that are made from a picture: 1 leaves nothing of it. Default: 0.6, of --variations 0.8, with
    a mask and of --invert 1."""
    mask: str | None = None
    """Mask of --image, white where it is painted anew."""
    outpaint: tuple[tuple[str, ...], ...] = ()
    """Pixels to paint around --image: --outpaint left=16 right=16 top=0 bottom=0."""
    paste: bool = True
    """Put the unpainted pixels of --image back as they were."""
    denoise: str | None = None
    """Noisy picture to clean."""
    noise_level: float | None = None
    """Standard deviation of its noise, in values of 255; default: estimated."""
    invert: str | None = None
    """Picture to lead back to its noise and to draw again, with a report of the error; --prompt draws it otherwise."""
    source_prompt: str | None = None
    """What the picture of --invert shows (a class for models of classes)."""
    variations: str | None = None
    """Picture of which to draw variations."""
    image_to: str | None = None
    """Interpolate from the picture of --image or --invert to this one."""
    seed_to: int | None = None
    """Interpolate from the noise of the seed to that of this one."""
    fit: Literal["exact", "crop"] = "exact"
    """Whether a picture of another size than what is drawn is refused, or cropped and resized."""
    height: int | None = None
    """Height to draw, where it is not that of training."""
    width: int | None = None
    """Width to draw, where it is not that of training."""
    animate: bool = False
    """Write the frames of an interpolation as animated GIF and WebP too."""
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
    guidance_scale: tuple[float, ...] = ()
    """Strength of guidance, 1 is none: one for all prompts, or one for each by repeating the flag."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels sigma / alpha between which is guided, such as 0.3 2."""
    guidance_rescale: float | None = None
    """Share by which a guided prediction is brought back to the spread of the conditional one, such as 0.7."""
    guidance_calls: GuidanceCalls | None = None
    """Calls of the denoiser for a guided step: one of twice the batch, or two, which need less memory."""
    weaker: str | None = None
    """Run of a weaker model, which guidance leads away from instead of the empty prompt (autoguidance)."""
    weaker_step: int | None = None
    """Checkpoint of the weaker model, which can then be of the same run; default: its newest."""
    classifier: str | None = None
    """Run of a classifier of noisy latents, which leads towards the class of --class-label."""
    classifier_scale: float = 1.0
    """How strongly it does."""
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
    strip_rows: int | None = None
    """Rows of a feature map that the autoencoder computes at a time, for large pictures; the same up to rounding."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    out: str | None = None
    """Folder for the pictures, where the same command goes on with what is missing; default: a folder for each request
    in samples/ of the run, or in samples/NAME for a model of another system."""
    again: str | None = None
    """Draw a picture that this command has drawn again, to the bit on the same machine; it is written to --out, by
    default the current folder, with -again in its name."""
    json: bool = False
    """Print the files written as JSON."""


@dataclass(frozen=True, kw_only=True)
class GridCommand:
    """Compare: prompts by guidance scales by seeds, as one labelled picture."""

    run: tyro.conf.Positional[str]
    """Folder of the run, or a model of another system."""
    prompt: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(aliases=["-p"])] = ()
    """What to draw; repeat the flag for several."""
    negative_prompt: str | None = None
    """What guidance leads away from."""
    class_label: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Class to draw; repeat the flag for several."""
    guidance_scale: tuple[float, ...] = ()
    """Strengths of guidance, a row each: --guidance-scale 1 3 7; default: that of the run."""
    seed: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds, a column each: --seed 0 1 2."""
    sampler: SamplerName | None = None
    """Solver; default: that of the run's configuration."""
    num_sample_steps: int | None = None
    """Steps from noise to latent."""
    guidance_rescale: float | None = None
    """As in `ldm sample`, as the next ones."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels between which is guided."""
    weaker: str | None = None
    """Run of a weaker model, which guidance leads away from (autoguidance)."""
    weaker_step: int | None = None
    """Checkpoint of the weaker model, which can then be of the same run; default: its newest."""
    prompt_syntax: Literal["weights", "plain"] = "weights"
    """Whether brackets in a prompt are weights or text."""
    batch_size: int = 16
    """Pictures drawn at once."""
    out: str = "grid.png"
    """File to write."""
    json: bool = False
    """Print the file written as JSON."""


def parse_sample(arguments: Sequence[str]) -> SampleCommand:
    """Read the flags of `ldm sample`.

    Raises:
        UserError: they do not go together, or a number is out of range.
    """
    command = tyro.cli(SampleCommand, prog="sample.py", args=list(arguments), config=(tyro.conf.UseAppendAction,))
    if (command.run is not None and command.model is not None) or not (command.run or command.model or command.again):
        raise UserError("give the folder of a run, or --model MODEL of another system")
    _check_weaker(command)
    _check_task(command)
    if command.again:
        _refuse_beside_again(command)
    elif command.run is not None:  # what is wrong with the flags is said before anything heavy is imported
        sampling_config(command, restore_experiment(to_place(command.run) / "config.json").sampling)
    return command


_STARTS = ("image", "denoise", "invert", "variations")
_GOES_WITH = {
    "strength": ("image", "invert", "variations"),
    "mask": ("image",),
    "outpaint": ("image",),
    "noise_level": ("denoise",),
    "source_prompt": ("invert",),
    "image_to": ("image", "invert"),
    "animate": ("prompt_to", "seed_to", "image_to"),
    "frames": ("prompt_to", "seed_to", "image_to"),
    "interpolation": ("prompt_to",),
    "classifier_scale": ("classifier",),
    "fit": _STARTS,
}
"""With which flags, one of them, a flag goes that is not as it is by default."""
_EXCLUDE = (
    ("mask", "outpaint"),
    ("image_to", "mask"),
    ("image_to", "outpaint"),
    ("seed_to", "denoise"),
    ("seed_to", "invert"),
    ("prompt_to", "invert"),
    ("prompt_to", "denoise"),
    ("outpaint", "height"),
    ("outpaint", "width"),
    ("prompt_to", "image_to"),
    ("classifier", "invert"),
    ("num_samples", "invert"),
    *(
        (name, "invert")
        for name in ("sampler", "eta", "churn", "tolerance", "clipping", "clip_range", "clip_percentile")
    ),
    *((name, "denoise") for name in ("spacing", "sigmas")),
)
"""The solver of an inversion is DDIM's, without noise and clipping; that of a noisy picture starts at its own level."""


def _check_task(command: SampleCommand) -> None:
    """Refuse flags of tasks that do not go together."""

    is_said = functools.partial(is_not_usual, command)
    said = [name for name in _STARTS if is_said(name)]
    if len(said) > 1:
        raise UserError(f"give one of {_listing(said)}: each starts from a picture of its own")
    for name, others in _GOES_WITH.items():
        if is_said(name) and not any(map(is_said, others)):
            raise UserError(f"{_flag(name)} goes with {' or '.join(map(_flag, others))}")
    is_told = any(map(is_said, ("prompt", "prompts", "class_label")))
    for name in ("negative_prompt", "guidance_scale"):
        if command.invert is not None and is_said(name) and not is_told:
            raise UserError(f"{_flag(name)} goes with a --prompt: what is inverted comes back without guidance")
    for one, other in _EXCLUDE:
        if is_said(one) and is_said(other):
            raise UserError(f"{_flag(one)} and {_flag(other)} exclude each other")
    if command.fit != "exact" and command.outpaint:
        raise UserError("--fit and --outpaint exclude each other: the canvas is made for the picture as it is")
    if not command.paste and not (command.mask or command.outpaint):
        raise UserError("--no-paste goes with --mask or --outpaint")
    for name in ("height", "width"):
        if is_said(name):
            check_numbers(**{name: (getattr(command, name),)})
    if command.strip_rows is not None:
        check_numbers(strip_rows=(command.strip_rows,))
    if command.seed_to is not None:
        _check_seed(command.seed_to, "--seed-to")


def is_not_usual(command: SampleCommand, name: str) -> bool:
    """Whether a flag is another than by default."""
    return getattr(command, name) != next(f.default for f in dataclasses.fields(command) if f.name == name)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _listing(names: Sequence[str]) -> str:
    return " and ".join(map(_flag, names))


def parse_grid(arguments: Sequence[str]) -> GridCommand:
    """Read the flags of `ldm grid`.

    Raises:
        UserError: a number is out of range, or there are no seeds or no picture is written.
    """
    command = tyro.cli(GridCommand, prog="ldm grid", args=list(arguments))
    check_numbers(batch_size=(command.batch_size,))
    _check_weaker(command)
    for seed in command.seed:
        _check_seed(seed)
    if not command.seed:
        raise UserError("--seed is empty; give a seed for each column")
    if to_place(command.out).suffix != ".png":
        raise UserError(f"--out {command.out} must be a .png")
    if to_place(command.out).exists():
        raise UserError(f"{command.out} is there already and is not overwritten; choose another file: --out FILE")
    return command


def sampling_config(command: SampleCommand | GridCommand, default: SamplingConfig) -> SamplingConfig:
    """The run's sampling configuration with the flags that were given; the strength of guidance is each picture's.

    Raises:
        UserError: a number is out of range.
    """
    if isinstance(command, SampleCommand):
        check_numbers(num_samples=(command.num_samples,), batch_size=(command.batch_size,))
        _check_seed(command.seed)
    names = {f.name for f in dataclasses.fields(default)} & {f.name for f in dataclasses.fields(command)}
    given = {name: getattr(command, name) for name in names if getattr(command, name) is not None}
    for scale in given.pop("guidance_scale", ()):
        dataclasses.replace(default, guidance_scale=scale)  # for its check
    if getattr(command, "invert", None) is not None:
        default = default.for_inversion()  # whatever else the run draws by
    config = dataclasses.replace(default, **given)
    config.require_used(given)
    return config


def devices_of(path: Place) -> int | None:
    """How many devices a picture was drawn on, as far as it says so."""
    try:
        devices = parse_json(read_picture(path)[1]["ldm"])["place"]["devices"]
        return devices if isinstance(devices, int) and devices > 0 else None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        return None


def check_numbers(**values: tuple[int, ...]) -> None:
    """Refuse flags that are not numbers from 1 on."""
    for name, numbers in values.items():
        flag = f"--{name.replace('_', '-')}"
        for number in numbers:
            if number < 1:
                raise UserError(f"{flag}={number} must be at least 1")
            if number > LARGEST:
                raise UserError(f"{flag}={number} must be at most {LARGEST}")


def _check_weaker(command: SampleCommand | GridCommand) -> None:
    if command.weaker_step is not None and command.weaker is None:
        raise UserError(f"--weaker-step={command.weaker_step} goes with --weaker RUN, which may be the same run")


def _check_seed(seed: int, flag: str = "--seed") -> None:
    if seed < 0:
        raise UserError(f"{flag}={seed} must not be negative")
    if seed > LARGEST:
        raise UserError(f"{flag}={seed} must be at most {LARGEST}")


def _refuse_beside_again(command: SampleCommand) -> None:
    """Refuse what the file decides: whoever gives it expects another picture."""
    free = {
        "run",
        "model",
        "config",
        "tokenizer",
        "out",
        "again",
        "json",
        "strip_rows",
        "weaker",
        "weaker_step",
        "classifier",
    }
    for f in dataclasses.fields(command):
        value: Any = getattr(command, f.name)
        usual = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.name not in free and value != usual:
            flag = f"--{f.name.replace('_', '-')}"
            raise UserError(f"{flag} does not go with --again, which draws what the file says")
