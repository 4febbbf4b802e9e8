"""What the two stages of a run share: configuration, folder, mesh, model, data and randomness."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from tokenizers import Tokenizer

from ldm_jax import rng, sharding
from ldm_jax.conditioning.tokenizer import Marks, PromptEncoder, token_inputs, train_tokenizer
from ldm_jax.config import (
    ClassConditioning,
    EmbeddingConditioning,
    Experiment,
    SpatialConditioning,
    TextConditioning,
    TrainingConfig,
)
from ldm_jax.data.latent_source import load_latents
from ldm_jax.data.pipeline import batches, epoch
from ldm_jax.data.source import Source, training_texts
from ldm_jax.data.sources import load_source
from ldm_jax.data.transforms import evaluation_transforms, training_transforms
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place
from ldm_jax.model import LatentDiffusion, make_model, require_diffusion_of_pictures
from ldm_jax.training import processes
from ldm_jax.training.perceptual import fingerprint_constants, read_constants
from ldm_jax.training.run_folder import RunFolder
from ldm_jax.training.step import Batch

logger = logging.getLogger(__name__)

_TEXTS = {"SdxlConditioning": ("first.", "second.")}


@dataclass(frozen=True)
class Workspace:
    """A run that is open for training."""

    experiment: Experiment
    run: RunFolder
    mesh: Mesh
    model: LatentDiffusion
    train: Source
    test: Source
    encode_caption: PromptEncoder | None
    root: Key[Array, ""]

    def train_batches(self, source: Source, config: TrainingConfig, purpose: str, start_step: int) -> Iterator[Batch]:
        """Global training batches of `source` on the devices, from a step on; each purpose has an order of its own."""
        seed = self.experiment.seed + 2 * (purpose == "diffusion")
        local = batches(
            source,
            transforms=training_transforms(self.experiment.data, self.train.info, seed),
            batch_size=config.batch_size,
            seed=seed,
            start_step=start_step,
            rows=sharding.local_rows(self.mesh, config.batch_size),
            num_threads=self.experiment.data.num_threads,
            encode_caption=self.encode_caption,
        )
        return (sharding.put_batch(self.mesh, batch) for batch in local)

    def epoch(self, source: Source, batch_size: int) -> Iterator[Batch]:
        """One ordered pass over a source on the devices, nothing drawn, in full batches; `valid` tells what counts."""
        local = epoch(
            source,
            transforms=evaluation_transforms(self.experiment.data),
            batch_size=batch_size,
            rows=sharding.local_rows(self.mesh, batch_size),
            num_threads=self.experiment.data.num_threads,
            encode_caption=self.encode_caption,
        )
        return map(self._of_epoch, local)

    def _of_epoch(self, batch: dict[str, np.ndarray]) -> Batch:
        processes.note("going once through a data set")  # which may take longer than a run may stand still
        return sharding.put_batch(self.mesh, batch)


def open_workspace(experiment: Experiment, run_dir: Place, given: Mapping[str, Tokenizer] | None = None) -> Workspace:
    """Open the data and the run folder, and build the model; `given` are the tokenizers of the model it starts from.

    Of several processes the first prepares data, tokenizer and folder, and the others find them done.

    Raises:
        UserError: the mesh, the data or the folder does not fit the experiment; nothing was overwritten.
    """
    with processes.first_before_others():
        return _open(experiment, run_dir, given)


def _open(experiment: Experiment, run_dir: Place, given: Mapping[str, Tokenizer] | None) -> Workspace:
    require_diffusion_of_pictures(experiment)
    mesh = sharding.make_mesh(experiment.mesh)
    trainings = {"first_stage.training": experiment.first_stage.training, "training": experiment.training}
    for name, training in trainings.items():
        sharding.check_batch_size(name, training.batch_size, training.gradient_accumulation, mesh)
    run = RunFolder(run_dir)
    run.check(experiment)
    _check_inputs(experiment, given)
    load = load_source if experiment.data.latents is None else load_latents
    train, test = load(experiment.data, "train"), load(experiment.data, "test")
    if experiment.start is not None or experiment.first_stage.run is not None:
        trainings.pop("first_stage.training")  # there is no such training: its batch is for encoding
    for name, training in trainings.items():
        _check_batch(name, training, train)
    _check_conditioning(experiment, train)
    model, tokenizers = make_model(experiment, mesh), _tokenizers(experiment, run, train, given)
    sharding.check_tensor_axis(mesh, jax.eval_shape(model.init, rng.root_key(0)))
    make_sampler(experiment.sampling, model.schedule, experiment.diffusion.prediction_type)  # it is needed much later
    data: dict[str, object] = {split.info.split: _describe(split) for split in (train, test)}
    run.check_data(data)
    if "first_stage.training" in trainings and not run.config_file.exists():
        data |= {"perceptual": fingerprint_constants(read_constants(experiment.first_stage))}
    if processes.is_first():
        run.open(experiment)  # nothing is written before all of this has been found to fit
        run.save_tokenizers(tokenizers)
        run.write_manifest(experiment, data | {"class_names": train.info.class_names, "credit": train.info.credit})
    logger.info(
        "%s: %d training and %d held-out pictures; run folder %s", train.info.name, len(train), len(test), run_dir
    )
    encode_caption = PromptEncoder(tokenizers) if tokenizers else None
    return Workspace(experiment, run, mesh, model, train, test, encode_caption, rng.root_key(experiment.seed))


def _check_batch(name: str, training: TrainingConfig, source: Source) -> None:
    """Here, not where batches are made: the second stage should not find out when the first is trained."""
    if training.batch_size > len(source):
        raise UserError(
            f"{name}.batch_size={training.batch_size} is larger than the data set: {source.info.name}/"
            f"{source.info.split} has {len(source)} pictures; use at most {len(source)}"
        )


def _describe(source: Source) -> dict[str, object]:
    return {"name": source.info.name, "num_pictures": len(source), "fingerprint": source.info.fingerprint}


def _check_inputs(experiment: Experiment, given: Mapping[str, Tokenizer] | None) -> None:
    """Refuse conditions that nothing delivers, before a data set is prepared."""
    config, wanted = experiment.conditioning, None
    kind, channels = type(config).__name__, experiment.denoiser.concat_channels
    match config:
        case SpatialConditioning():
            wanted = "maps beside its pictures"
        case EmbeddingConditioning():
            wanted = "embeddings for its pictures"
        case TextConditioning(tokens="boxes"):
            wanted = "boxes of the objects in its pictures"
        case _ if channels > 0:
            wanted = f"maps of denoiser.concat_channels={channels} channels"
    if wanted is not None:
        raise UserError(
            f"the data set {type(experiment.data.source).__name__} has no {wanted}, which this model is told in "
            f"training (conditioning={kind}), nor has any other here yet; train another model"
        )
    if token_inputs(config) and not (isinstance(config, TextConditioning) or given):
        flags = " and ".join(f"--conditioning.{name}folder FOLDER" for name in _TEXTS.get(kind, ("",)))
        raise UserError(
            f"{kind} is not trained from nothing: give a model with its weights and its tokenizer, --start MODEL, or "
            f"the folder of a transformers CLIPTextModel, {flags}"
        )


def _check_conditioning(experiment: Experiment, source: Source) -> None:
    conditioning = experiment.conditioning
    if isinstance(conditioning, ClassConditioning):
        found = len(source.info.class_names)
        if found != conditioning.num_classes:
            raise UserError(
                f"conditioning.num_classes={conditioning.num_classes}, but the data set {source.info.name} has "
                + (f"{found} classes; use that number" if found else "no classes; use text conditioning or none")
            )
    if token_inputs(conditioning) and not source.info.has_captions:
        raise UserError(
            f"the data set {source.info.name} has no captions, which text conditioning needs; use class conditioning "
            "or none, or another data set"
        )


def _tokenizers(
    experiment: Experiment, run: RunFolder, source: Source, given: Mapping[str, Tokenizer] | None
) -> dict[str, Tokenizer]:
    """The run's tokenizers: those saved when the run goes on, those given, or one trained on the training captions."""
    config = experiment.conditioning
    wanted = token_inputs(config)
    if not wanted or _are_saved(run, wanted):
        return run.load_tokenizers(config)
    if given:
        return dict(given)
    assert isinstance(config, TextConditioning)  # _check_inputs has refused the others
    marks = Marks(config.begin_token, config.end_token, config.pad_token)
    return {"tokens": train_tokenizer(training_texts(source), config.vocab_size, config.context_length, marks)}


def _are_saved(run: RunFolder, inputs: Iterable[str]) -> bool:
    return all(run.tokenizer_file(name).exists() for name in inputs)
