"""One experiment from data to pictures: autoencoder, latents, denoiser, and the grids that show what they can do."""

import contextlib
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import sharding
from ldm_jax.conditioning.tokenizer import token_inputs
from ldm_jax.config import ClassConditioning, Experiment
from ldm_jax.data.given.heldout import heldout_example
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place
from ldm_jax.interop.starting_point import find_starting_point
from ldm_jax.model import Params, hash_params
from ldm_jax.pictures import draw_grid, to_uint8
from ldm_jax.sampling.session import Session
from ldm_jax.training import processes
from ldm_jax.training.autoencoder_stage import make_autoencoder_stage
from ldm_jax.training.classifier_stage import CLASSIFIER_MEASURES, make_classifier_stage
from ldm_jax.training.diffusion_stage import make_diffusion_stage
from ldm_jax.training.keep_policy import KeepPolicy
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.loop import Scoring, Stage, measures, run_stage
from ldm_jax.training.perceptual import without_missing_perceptual
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.startup import Startup
from ldm_jax.training.state import TrainState
from ldm_jax.training.workspace import Workspace, open_workspace

logger = logging.getLogger(__name__)

HELDOUT_GRID = "heldout.png"
_HELDOUT_ROWS = 10


def train_experiment(experiment: Experiment, run_dir: Place) -> None:
    """Train both stages into `run_dir`, from where it was left, and draw the final grids.

    Raises:
        UserError: bad input, a diverged loss, an interruption (saved), or a folder that cannot be used.
    """
    startup = Startup.of_process()
    startup.lap("import")
    run = RunFolder(run_dir)
    experiment = without_missing_perceptual(experiment, run)
    run.check(experiment)
    wanted = [HELDOUT_GRID] if _has_heldout_grid(experiment) else []
    if run.is_finished(experiment) and all((run.samples / name).exists() for name in wanted):
        logger.info(
            "%s is finished: trained for %d steps, pictures in %s", run_dir, experiment.training.num_steps, run.samples
        )
        return
    run.check_writable()
    start = find_starting_point(experiment, run)
    work = open_workspace(experiment, run_dir, start.tokenizers)
    with work.run.claimed() if processes.is_first() else contextlib.nullcontext():
        _train(work, start.params, startup)


def _train(work: Workspace, given: Params, startup: Startup) -> None:
    """Train what is not trained yet, from parts that are `given`, and draw the final grids."""
    experiment = work.experiment
    if experiment.classifier is not None:
        KeepPolicy.of(experiment.training).check_measured(CLASSIFIER_MEASURES)
        stage = _classifier_stage(work, given)
        _record_results(work, run_stage(stage, work.run, work.mesh, work.root, startup))
        return
    scoring = _scoring(work)  # what it lacks is said before anything is trained
    stage = _diffusion_stage(work, given, startup, scoring)
    state = run_stage(stage, work.run, work.mesh, work.root, startup)
    _draw_heldout(work, state)
    _record_results(work, state)
    logger.info("pictures are in %s", work.run.samples)


def _record_results(work: Workspace, state: TrainState) -> None:
    """Checksums of what was learned, by which `ldm reproduce` compares; of several processes none reads checkpoints."""
    processes.note("computing the checksum of the autoencoder")
    autoencoder = hash_params(state.model_params["autoencoder"])
    if processes.is_first():
        work.run.record_results(autoencoder, digests=jax.process_count() == 1)


def _scoring(work: Workspace) -> Scoring | None:
    """How samples are scored in training, if they are.

    Raises:
        UserError: what it needs is missing, or the best checkpoints are to be kept by a score that is not computed.
    """
    experiment, scoring = work.experiment, None
    if experiment.scoring.every > 0:
        from ldm_jax.evaluation.scorer import make_scorer  # feature networks, which only this needs

        processes.note("looking at the reference of the scores")
        scorer = make_scorer(work, _session(work, {}), experiment.scoring)

        def score(state: TrainState, step: int) -> dict[str, float]:
            try:
                return scorer.score(_session(work, state.model_params))
            except UserError as error:  # a model that does not draw yet may still learn to
                logger.warning("there are no scores of step %d: %s", step, error)
                return {}

        scoring = Scoring(experiment.scoring.every, scorer.names, score)
    KeepPolicy.of(experiment.training).check_measured(measures(scoring))
    return scoring


def _diffusion_stage(work: Workspace, given: Params, startup: Startup, scoring: Scoring | None) -> Stage:
    """The second stage, behind the first unless the autoencoder is `given`, from any other parts that are."""
    frozen = {"autoencoder": given["autoencoder"]} if "autoencoder" in given else _first_stage(work, startup)
    initial = {name: given[name] for name in ("conditioner", "denoiser") if name in given}
    if not getattr(work.experiment.conditioning, "trainable", True):
        frozen["conditioner"] = initial.pop("conditioner")
    frozen = sharding.place(work.mesh, frozen)  # once, not for every batch that is encoded
    latents = LatentReader(work, frozen)
    frozen |= {"latent": given["latent"]} if "latent" in given else latents.statistics()
    frozen = sharding.place(work.mesh, frozen)

    def draw(state: TrainState, step: int) -> None:
        _try_to_draw(work, state, step)

    return make_diffusion_stage(work, latents, frozen, draw, initial, scoring)


def _classifier_stage(work: Workspace, given: Params) -> Stage:
    """The stage of a classifier, on the first stage of another run."""
    frozen = sharding.place(work.mesh, {"autoencoder": given["autoencoder"]})
    latents = LatentReader(work, frozen)
    return make_classifier_stage(work, latents, sharding.place(work.mesh, frozen | latents.statistics()))


def _first_stage(work: Workspace, startup: Startup) -> Params:
    """The averaged autoencoder of this run, trained now or earlier."""
    params = run_stage(make_autoencoder_stage(work), work.run, work.mesh, work.root, startup).model_params
    return {"autoencoder": params["autoencoder"]}  # without what it was trained against


def _session(work: Workspace, params: Params) -> Session:
    info = work.train.info
    return Session(
        work.experiment,
        work.model,
        params,
        work.encode_caption,
        info.class_names,
        info.credit,
        mesh=work.experiment.mesh,
        shelf=work.shelf,
    )


def _try_to_draw(work: Workspace, state: TrainState, step: int) -> None:
    """A model that does not draw yet may still learn to."""
    try:
        _draw_samples(work, state, step)
    except UserError as error:
        logger.warning("there are no pictures of step %d: %s", step, error)


def _draw_samples(work: Workspace, state: TrainState, step: int) -> None:
    """A grid of the configured prompts, of every class, or of anything, drawn with the averaged parameters."""
    if work.experiment.given is not None:
        _draw_heldout(work, state, f"samples_{step:06d}.png")
        return
    session, config = _session(work, state.model_params), work.experiment.sampling
    per_row = config.samples_per_prompt
    conditioning = work.experiment.conditioning
    if token_inputs(conditioning) and config.prompts:
        labels = list(config.prompts)
        inputs = session.prompt_inputs([prompt for prompt in labels for _ in range(per_row)])
    elif isinstance(conditioning, ClassConditioning):
        labels = [session.class_names[i] for i in range(conditioning.num_classes)][:_HELDOUT_ROWS]
        inputs = session.class_inputs([label for label in labels for _ in range(per_row)])
    else:
        labels = [""] * per_row
        inputs = session.null_inputs(per_row * per_row)
    count = len(labels) * per_row
    pictures = list(session.draw(inputs, count, config, seed=work.experiment.seed))
    rows = [pictures[i : i + per_row] for i in range(0, count, per_row)]
    if processes.is_first():
        draw_grid(rows, labels, work.run.samples / f"samples_{step:06d}.png", footer=session.credit)


def _has_heldout_grid(experiment: Experiment) -> bool:
    return experiment.classifier is None and bool(token_inputs(experiment.conditioning) or experiment.given)


def _draw_heldout(work: Workspace, state: TrainState, name: str = HELDOUT_GRID) -> None:
    """Held-out captions, with their first keyword, and what else the model is given: the picture of each, never trained
    on, and how what is given looks, before what is drawn."""
    if not _has_heldout_grid(work.experiment):
        return
    session, config, shelf = _session(work, state.model_params), work.experiment.sampling, work.shelf
    chosen = np.linspace(0, len(work.test) - 1, min(_HELDOUT_ROWS, len(work.test))).astype(int).tolist()
    captions = [", ".join([a["caption"], *a["tags"][:1]]) for a in map(work.test.annotation, chosen)]
    per_row = config.samples_per_prompt
    repeated = [i for i in range(len(chosen)) for _ in range(per_row)]
    given = [] if shelf.is_empty else [shelf.of_heldout(i) for i in chosen]
    inputs = session.null_inputs(len(repeated))
    if token_inputs(work.experiment.conditioning):
        inputs |= session.prompt_inputs([captions[i] for i in repeated])
    if given:
        inputs |= jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *(given[i] for i in repeated))
    drawn = list(session.draw(inputs, len(repeated), config, seed=work.experiment.seed))
    pictures = _test_pictures(work, state, chosen)
    if not processes.is_first():
        return
    rows = [[pictures[i], *drawn[i * per_row : (i + 1) * per_row]] for i in range(len(captions))]
    footer = "first column: the held-out picture. " + session.credit
    if given:
        rows = [[row[0], shelf.given.shown(arrays), *row[1:]] for row, arrays in zip(rows, given, strict=True)]
        footer = "first columns: the held-out picture, and what of it is given. " + session.credit
    draw_grid(rows, captions, work.run.samples / name, footer=footer)


def _test_pictures(work: Workspace, state: TrainState, chosen: Sequence[int]) -> list[np.ndarray]:
    """Held-out pictures, or where only their latents are there, what these are decoded to."""
    examples = [heldout_example(work.test, work.experiment.data, i) for i in chosen]
    if "image" in examples[0]:
        return [to_uint8(example["image"]) for example in examples]
    means = np.stack([np.split(example["moments"], 2, axis=-1)[0] for example in examples])
    params = state.model_params
    decoded = jax.jit(lambda params, z: work.model.decode(params, work.model.normalize(params, z)))(params, means)
    return list(map(to_uint8, sharding.to_host(decoded)))
