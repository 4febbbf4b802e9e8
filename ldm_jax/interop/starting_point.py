"""What a training starts from: its own checkpoint, a whole model, another run's first stage, or CLIP's folders."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from ldm_jax.config import ClipTextConditioning, Conditioning, Experiment, SdxlConditioning, differences
from ldm_jax.config.same_model import autoencoder_form, encoder_forms, model_differences
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place, to_place
from ldm_jax.interop.model_files import open_model
from ldm_jax.interop.text_folders import read_text_folder
from ldm_jax.model import Params
from ldm_jax.sampling.session import load_session
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """Parts of the model that are there before it is trained: all of them, some or none."""

    params: Params = field(default_factory=dict)
    """Those of `autoencoder`, `latent`, `conditioner` and `denoiser` that need not be drawn or trained first."""
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    """The tokenizers of a conditioner that comes with its own."""


def find_starting_point(experiment: Experiment, run: RunFolder) -> StartingPoint:
    """What `experiment` starts from in `run`, which `RunFolder.check` has accepted.

    Once a run has a checkpoint of its second stage, that holds all of the model: what the run started from is not
    opened again, and may be gone.

    Raises:
        UserError: something is missing, damaged, not finished, or of another model; or the run was begun from
            something else and has no such checkpoint yet. Nothing was written.
    """
    if run.checkpoints("diffusion").steps():
        return _own_checkpoint(experiment, run)
    _check_begun(experiment, run)
    return _from_elsewhere(experiment)


def find_encoders(experiment: Experiment, run: RunFolder | None) -> StartingPoint:
    """What pictures and captions are encoded with: parts of a run that has them, or of what an experiment starts from.

    Raises:
        UserError: there is no trained autoencoder, or it is damaged, not finished, or of another model; or the run has
            one, and `experiment` names another.
    """
    if run is not None and any(run.checkpoints(stage).steps() for stage in ("autoencoder", "diffusion")):
        return _encoders_of(experiment, run)
    start = _from_elsewhere(experiment)
    if "autoencoder" not in start.params:
        raise UserError(
            f"{experiment.name} names no trained autoencoder: encode for a run that has one (ldm latents encode RUN), "
            "or name it with --first-stage.run RUN or --start MODEL"
        )
    return start


def _encoders_of(experiment: Experiment, run: RunFolder) -> StartingPoint:
    _check_own(experiment, run)
    autoencoder = _finished_autoencoder(run.path, run.load_config().first_stage.training.num_steps)
    if not _texts(experiment.conditioning):
        return StartingPoint(autoencoder)
    if not run.checkpoints("diffusion").steps():
        text = _text_transformers(experiment.conditioning)
        return StartingPoint({**text.params, **autoencoder}, text.tokenizers)
    session = load_session(run.path)
    return StartingPoint({**autoencoder, "conditioner": session.params["conditioner"]}, session.tokenizers)


def _check_own(experiment: Experiment, run: RunFolder) -> None:
    """Refuse to encode for a run by other networks than its own, or as if its own were others."""
    own = run.load_config()
    old, new = (
        {"first_stage.run": each.first_stage.run, **_origins(each), **encoder_forms(each)} for each in (own, experiment)
    )
    if not run.checkpoints("diffusion").steps():  # the text transformers are still those of their folders
        old, new = ({n: v for n, v in each.items() if not n.endswith(".folder")} for each in (old, new))
    if changed := [line for name, part in old.items() for line in differences(part, new.get(name), name)]:
        listing = "\n  ".join(changed)
        raise UserError(
            f"{run.path} encodes with the networks that it has:\n  {listing}\nleave these flags out, or encode for an "
            "experiment by its name, with --first-stage.run RUN or --start MODEL"
        )


def _from_elsewhere(experiment: Experiment) -> StartingPoint:
    if experiment.start is not None:
        return _whole_model(experiment, experiment.start)
    text = _text_transformers(experiment.conditioning)
    return StartingPoint({**text.params, **_first_stage(experiment)}, text.tokenizers)


def _own_checkpoint(experiment: Experiment, run: RunFolder) -> StartingPoint:
    """What the second stage does not train, where it came from elsewhere; the rest is restored with the state."""
    if run.checkpoints("autoencoder").steps() and not _texts(experiment.conditioning):
        return StartingPoint()
    session = load_session(run.path)
    trained = {"denoiser", "conditioner"} if getattr(experiment.conditioning, "trainable", True) else {"denoiser"}
    held = {name: value for name, value in session.params.items() if name not in trained}
    return StartingPoint(held, session.tokenizers)


def _check_begun(experiment: Experiment, run: RunFolder) -> None:
    """What a run starts from may be dropped from its command only when it is in a checkpoint."""
    if not run.config_file.exists():
        return
    old, new = _origins(run.load_config()), _origins(experiment)
    changed = [f"{name}: {value!r} -> {new[name]!r}" for name, value in old.items() if value != new[name]]
    if changed:
        raise UserError(
            f"{run.path} was begun from something else ({'; '.join(changed)}), and its second stage has no checkpoint "
            "yet; go on with the same, or use another folder: --run-dir DIR"
        )


def _origins(experiment: Experiment) -> dict[str, str | None]:
    folders = {f"{name}.folder": text.folder for name, text in _texts(experiment.conditioning).items()}
    return {"start": experiment.start, **folders}


def _whole_model(experiment: Experiment, start: str) -> StartingPoint:
    session = open_model(to_place(start))
    session.require_denoiser()
    if changed := model_differences(session.experiment, experiment):
        listing = "\n  ".join(changed)
        raise UserError(f"start={start} is another model:\n  {listing}\ngive this experiment the same one")
    return StartingPoint(session.params, session.tokenizers)


def _texts(config: Conditioning) -> dict[str, ClipTextConditioning]:
    """The CLIP text transformers of a conditioner by their place in the configuration."""
    match config:
        case ClipTextConditioning():
            return {"conditioning": config}
        case SdxlConditioning():
            return {"conditioning.first": config.first, "conditioning.second": config.second}
        case _:
            return {}


def _text_transformers(config: Conditioning) -> StartingPoint:
    """The conditioner from the folders of its text transformers, where they are given."""
    texts = _texts(config)
    folders = {name: text.folder for name, text in texts.items() if text.folder is not None}
    if not folders:
        return StartingPoint()
    if missing := sorted(set(texts) - set(folders)):
        raise UserError(f"{missing[0]}.folder is missing beside {next(iter(folders))}.folder; give both")
    read = [read_text_folder(Path(folder), texts[name], name) for name, folder in folders.items()]
    if isinstance(config, ClipTextConditioning):
        ((params, tokenizer),) = read
        return StartingPoint({"conditioner": params}, {"tokens": tokenizer})
    (first, one), (second, other) = read
    return StartingPoint({"conditioner": {"first": first, "second": second}}, {"tokens": one, "tokens_2": other})


def _first_stage(experiment: Experiment) -> Params:
    """The averaged autoencoder of the run that is named for it, if any."""
    config = experiment.first_stage
    if config.run is None:
        return {}
    other = RunFolder(to_place(config.run)).load_config()
    changed = [
        *differences(
            autoencoder_form(other.first_stage.autoencoder),
            autoencoder_form(config.autoencoder),
            "first_stage.autoencoder",
        ),
        *differences(other.data.image_channels, experiment.data.image_channels, "data.image_channels"),
    ]
    if changed:
        raise UserError(
            f"first_stage.run={config.run} has another autoencoder ({'; '.join(changed)}); give this experiment "
            "the same one"
        )
    return _finished_autoencoder(to_place(config.run), other.first_stage.training.num_steps)


def _finished_autoencoder(path: Place, num_steps: int) -> Params:
    """From the run's first stage or, where that was another's, from its second, which holds all of the model."""
    checkpoints = RunFolder(path).checkpoints("autoencoder")
    steps = checkpoints.steps()
    if num_steps in steps:
        checkpoints.verify(num_steps)  # where it is damaged, an older one would do to draw, but not to build on
        return load_session(path, stage="autoencoder").params
    if RunFolder(path).checkpoints("diffusion").steps():
        return {"autoencoder": load_session(path).params["autoencoder"]}
    raise UserError(
        f"first_stage.run={path} has trained its autoencoder for {steps[-1] if steps else 0} of {num_steps} steps; "
        "finish that run first"
    )
