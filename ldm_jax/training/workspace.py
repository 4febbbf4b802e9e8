"""What the two stages of a run share: configuration, folder, mesh, model, data and randomness."""

import functools
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
    DataConfig,
    EmbeddingConditioning,
    Experiment,
    SpatialConditioning,
    TextConditioning,
    TrainingConfig,
)
from ldm_jax.config.saved import differences
from ldm_jax.data.given.heldout import HELDOUT_SEED
from ldm_jax.data.given.make import Load
from ldm_jax.data.given.shelf import GivenShelf
from ldm_jax.data.latent_source import LatentSource, load_training_data, misfit
from ldm_jax.data.pipeline import MakeInputs, batches, epoch
from ldm_jax.data.source import Source, Split, training_texts
from ldm_jax.data.sources import load_source
from ldm_jax.data.transforms import evaluation_transforms, sample_rng, training_transforms
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
    shelf: GivenShelf
    """What the denoiser is given beside caption and class."""

    def train_batches(self, source: Source, config: TrainingConfig, purpose: str, start_step: int) -> Iterator[Batch]:
        """Global training batches of `source` on the devices, from a step on; each purpose has an order of its own."""
        is_second = purpose == "diffusion"
        seed = self.experiment.seed + 2 * is_second
        local = batches(
            source,
            transforms=training_transforms(
                self.experiment.data, self.train.info, seed, tell_sizes=is_second and self.experiment.tells_sizes
            ),
            batch_size=config.batch_size,
            seed=seed,
            start_step=start_step,
            rows=sharding.local_rows(self.mesh, config.batch_size),
            num_threads=self.experiment.data.num_threads,
            encode_caption=self.encode_caption,
            make_inputs=self._inputs_of(seed) if is_second else None,
        )
        return (sharding.put_batch(self.mesh, batch) for batch in local)

    def epoch(self, source: Source, batch_size: int, *, for_denoiser: bool = False) -> Iterator[Batch]:
        """One ordered pass over a source on the devices, in full batches; `valid` tells what counts.

        What a denoiser is given is random where it is in training, and the same in every pass.
        """
        local = epoch(
            source,
            transforms=evaluation_transforms(
                self.experiment.data, tell_sizes=for_denoiser and self.experiment.tells_sizes
            ),
            batch_size=batch_size,
            rows=sharding.local_rows(self.mesh, batch_size),
            num_threads=self.experiment.data.num_threads,
            encode_caption=self.encode_caption,
            make_inputs=self._inputs_of(HELDOUT_SEED) if for_denoiser else None,
        )
        return map(self._of_epoch, local)

    def _of_epoch(self, batch: dict[str, np.ndarray]) -> Batch:
        processes.note("going once through a data set")  # which may take longer than a run may stand still
        return sharding.put_batch(self.mesh, batch)

    def _inputs_of(self, seed: int) -> MakeInputs | None:
        if self.shelf.is_empty:
            return None
        given = self.shelf.given
        return lambda example, n: given.of_example(example, sample_rng(seed, "given", n))


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
    train, test = (load_training_data(experiment.data, split) for split in ("train", "test"))
    if experiment.start is not None or experiment.first_stage.run is not None:
        trainings.pop("first_stage.training")  # there is no such training: its batch is for encoding
    for name, training in trainings.items():
        _check_batch(name, training, train)
    _check_conditioning(experiment, train)
    _check_classifier(experiment, train)
    splits: dict[Split, Source] = {"train": train, "test": test}
    shelf = GivenShelf(experiment, train.info.object_names, load=_pictures_of(experiment.data, splits))
    if not shelf.is_empty:
        shelf.of_heldout(0)  # what the data lack should be known now
    model, tokenizers = make_model(experiment, mesh), _tokenizers(experiment, run, train, given)
    if mesh.shape["tensor"] > 1:  # else nothing can be wrong, and tracing a model takes a second
        sharding.check_tensor_axis(mesh, jax.eval_shape(model.init, rng.root_key(0)))
    make_sampler(experiment.sampling, model.schedule, experiment.diffusion.prediction_type)  # it is needed much later
    data: dict[str, object] = {name: _describe(split) for name, split in splits.items()}
    run.check_data(data)
    if "first_stage.training" in trainings and not run.config_file.exists():
        data |= {"perceptual": fingerprint_constants(read_constants(experiment.first_stage))}
    if processes.is_first():
        run.open(experiment)  # nothing is written before all of this has been found to fit
        run.save_tokenizers(tokenizers)
        run.write_manifest(experiment, data | _names(train))
    else:
        run.require_opened()
    logger.info(
        "%s: %d training and %d held-out pictures; run folder %s", train.info.name, len(train), len(test), run_dir
    )
    encode_caption = PromptEncoder(tokenizers) if tokenizers else None
    root = rng.root_key(experiment.seed)
    return Workspace(experiment, run, mesh, model, train, test, encode_caption, root, shelf)


def _pictures_of(config: DataConfig, splits: Mapping[Split, Source]) -> Load:
    """What opens the pictures of splits, of which there may be latents in their place."""

    @functools.cache
    def load(split: Split) -> Source:
        source = splits[split]
        if not isinstance(source, LatentSource):
            return source
        pictures = load_source(config, split)
        if changed := [*differences(source.info.fingerprint, pictures.info.fingerprint, "fingerprint of the pictures")]:
            raise UserError(misfit(source, changed))
        return pictures

    return load


def _check_batch(name: str, training: TrainingConfig, source: Source) -> None:
    """Here, not where batches are made: the second stage should not find out when the first is trained."""
    if training.batch_size > len(source):
        raise UserError(
            f"{name}.batch_size={training.batch_size} is larger than the data set: {source.info.name}/"
            f"{source.info.split} has {len(source)} pictures; use at most {len(source)}"
        )


def _describe(source: Source) -> dict[str, object]:
    return {"name": source.info.name, "num_pictures": len(source), "fingerprint": source.info.fingerprint}


def _names(source: Source) -> dict[str, object]:
    info = source.info
    return {"class_names": info.class_names, "object_names": info.object_names, "credit": info.credit}


def _check_inputs(experiment: Experiment, given: Mapping[str, Tokenizer] | None) -> None:
    """Refuse conditions that nothing delivers, before a data set is prepared."""
    config, missing = experiment.conditioning, None
    kind, channels = type(config).__name__, experiment.denoiser.concat_channels
    match config:
        case SpatialConditioning():
            missing = ("maps beside its pictures", "LowResolution() or LabelMap()")
        case EmbeddingConditioning():
            missing = ("embeddings for its pictures", "Neighbours()")
        case TextConditioning(tokens="boxes"):
            missing = ("boxes of the objects in its pictures", "Layout()")
        case _ if channels > 0:
            missing = (f"maps of denoiser.concat_channels={channels} channels", "MaskedPicture()")
    if missing is not None and experiment.given is None:
        raise UserError(
            f"this model (conditioning={kind}) is told {missing[0]} in training, and nothing makes them; set given="
            f"{missing[1]} in the experiment's file"
        )
    if token_inputs(config) and not (isinstance(config, TextConditioning) or given):
        flags = " and ".join(f"--conditioning.{name}folder FOLDER" for name in _TEXTS.get(kind, ("",)))
        raise UserError(
            f"{kind} is not trained from nothing: give a model with its weights and its tokenizer, --start MODEL, or "
            f"the folder of a transformers CLIPTextModel, {flags}"
        )


def _check_classifier(experiment: Experiment, source: Source) -> None:
    """Refuse a classifier without a model to guide, or of other classes than the data have."""
    if experiment.classifier is None:
        return
    if experiment.first_stage.run is None:
        raise UserError("a classifier works on the latents of the model that it guides: name it, --first-stage.run RUN")
    wanted, found = experiment.classifier.num_classes, len(source.info.class_names)
    if wanted != found:
        raise UserError(
            f"classifier.num_classes={wanted}, but the data set {source.info.name} has {found} classes; "
            + ("use that number" if found else "use one with classes")
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
