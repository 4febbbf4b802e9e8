"""A trained model, ready to draw: what was asked for (prompts or classes) in, 8-bit pictures out."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from tokenizers import Tokenizer

from ldm_jax import rng, sharding
from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.conditioning.tokenizer import PromptEncoder, token_inputs
from ldm_jax.config import ClassConditioning, Experiment, MeshConfig, SamplingConfig
from ldm_jax.data.given.shelf import GivenShelf
from ldm_jax.data.source import Source, Split
from ldm_jax.diffusion.samplers import Sampler, make_sampler
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place
from ldm_jax.model import LatentDiffusion, Params, make_model, require_diffusion_of_pictures
from ldm_jax.sampling.batches import BatchDrawer, guidance_numbers
from ldm_jax.sampling.generate import Method, Request
from ldm_jax.training.checkpoints import Checkpoints, abstract_like
from ldm_jax.training.rebuild import rebuild_average
from ldm_jax.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportedSampler:
    """The scheduler that came with a model of another system."""

    options: Mapping[str, Any]
    """As the other system writes it."""
    make: Callable[[SamplingConfig, int], Sampler]
    """The sampler with the number of steps (and eta) of a configuration, less so many at the noisy end."""


@dataclass(frozen=True)
class Session:
    """A model with its parameters and what it takes to talk to it."""

    experiment: Experiment
    model: LatentDiffusion
    params: Params
    encode_caption: PromptEncoder | None = None
    class_names: tuple[str, ...] = ()
    credit: str = ""
    imported_sampler: ImportedSampler | None = None
    """The sampler that came with a model of another system: `imported` in a configuration."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How the devices are arranged to draw; pictures are the same up to rounding."""
    shelf: GivenShelf | None = None
    """What it can be given beside prompt and class, where its data are known."""
    classifier: Callable[[Sequence[str | None]], np.ndarray] | None = None
    """Class numbers of the classifier that guides the model, where there is one."""
    seal: Place | None = None
    """Seal of the checkpoint that its parameters come from, if they do."""

    def on(self, mesh: MeshConfig) -> "Session":
        """The same model, made for and drawing on devices arranged in another way.

        Raises:
            UserError: the mesh does not fit the devices or the model.
        """
        if mesh == self.mesh:
            return self
        arranged = sharding.make_mesh(mesh)
        sharding.check_tensor_axis(arranged, self.params)
        model = make_model(self.experiment, arranged)
        return dataclasses.replace(self, model=model, mesh=mesh)

    def in_strips(self, strip_rows: int | None) -> "Session":
        """The same model, encoding and decoding so many rows of a feature map at a time; None leaves it as it is.

        Raises:
            UserError: that is no number of rows, or the model is not of pictures.
        """
        if strip_rows is None:
            return self
        experiment = dataclasses.replace(self.experiment, strip_rows=strip_rows)
        model = make_model(experiment, sharding.make_mesh(self.mesh))
        return dataclasses.replace(self, experiment=experiment, model=model)

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """The tokenizers of its prompts, by the input that each makes."""
        return {} if self.encode_caption is None else self.encode_caption.tokenizers

    @property
    def is_first_stage(self) -> bool:
        """Whether this is an autoencoder alone, with parameters of `autoencoder` (and `latent`) and no others."""
        return "denoiser" not in self.params

    def require_denoiser(self) -> None:
        """Refuse to draw with an autoencoder alone.

        Raises:
            UserError: there is no denoiser.
        """
        if self.is_first_stage:
            raise UserError(
                f"{self.experiment.name} is a first stage alone: it encodes and decodes pictures, and draws none; "
                "train a denoiser on its latents with --first-stage.run RUN (`ldm convert` writes it as a run)"
            )

    def prompt_inputs(self, prompts: Sequence[str]) -> Inputs:
        """The conditioner's inputs for prompts, one sample each, taken as plain text and cut at the context's length.

        Raises:
            UserError: the model takes no prompts, or came without a tokenizer.
        """
        encoder = self.prompt_encoder()
        if not all(prompt.strip() for prompt in prompts):
            logger.warning("an empty prompt draws without a condition")
        encoded = {prompt: encoder(prompt) for prompt in dict.fromkeys(prompts)}  # one warning for each
        rows = [encoded[prompt] for prompt in prompts]
        return {**self.null_inputs(len(rows)), **jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)}

    def prompt_encoder(self) -> PromptEncoder:
        """What splits prompts into tokens.

        Raises:
            UserError: the model takes no prompts, or came without a tokenizer.
        """
        if self.encode_caption is None and token_inputs(self.experiment.conditioning):
            raise UserError(
                "this model's files hold no tokenizer, which prompts need; give the folder of the one that it was "
                "trained with: --tokenizer FOLDER"
            )
        if self.encode_caption is None:
            kind = type(self.experiment.conditioning).__name__
            raise UserError(f"this model has {kind} and takes no prompt; {self._instead()}")
        return self.encode_caption

    def class_inputs(self, labels: Sequence[str]) -> Inputs:
        """The conditioner's inputs for classes, given by number or name, one sample each.

        Raises:
            UserError: the model knows no classes, or not this one.
        """
        return {"class_labels": jnp.asarray([self.class_number(label) for label in labels], jnp.int32)}

    def class_number(self, label: str) -> int:
        """The number of a class, given by number or name; raises UserError where `class_inputs` does."""
        conditioning = self.experiment.conditioning
        if not isinstance(conditioning, ClassConditioning):
            raise UserError(f"this model has {type(conditioning).__name__} and takes no class label; {self._instead()}")
        names = [name.lower() for name in self.class_names]
        if label.lower() in names:
            return names.index(label.lower())
        count = conditioning.num_classes
        if label.isdecimal() and int(label) < count:
            return int(label)
        known = f"; names: {', '.join(self.class_names)}" if names else ""
        raise UserError(f"unknown class {label!r}: use a number from 0 to {count - 1}{known}")

    def _instead(self) -> str:
        conditioning = self.experiment.conditioning
        if token_inputs(conditioning):
            return "use --prompt TEXT"
        return "use --class-label N" if isinstance(conditioning, ClassConditioning) else "use --num-samples N alone"

    @property
    def given(self) -> GivenShelf:
        """What the model can be given: of files alone where its data are not known."""
        return GivenShelf(self.experiment, load=_no_data) if self.shelf is None else self.shelf

    def null_inputs(self, count: int) -> Inputs:
        """The conditioner's inputs for nothing in particular."""
        return self.model.null_inputs(count)

    def draw(
        self, inputs: Inputs, count: int, config: SamplingConfig, seed: int, batch_size: int = 16
    ) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """Draw `count` pictures for as many rows of `inputs`, in batches of one size; picture i has sample index i.

        Raises:
            UserError: the model is a first stage alone or draws no pictures, the sampler does not fit it, or they are
                not finite numbers.
        """
        self.require_denoiser()
        require_diffusion_of_pictures(self.experiment)
        drawer = BatchDrawer(self.model, self.params, self.sampler(config), config, sharding.make_mesh(self.mesh))
        size = drawer.batch_size(batch_size, count)
        method = Method(guided=config.guidance_scale != 1.0 and bool(inputs), calls=config.guidance_calls)
        null = self.model.conditioner.null_inputs(size)
        for begin in range(0, count, size):
            index = np.arange(begin, begin + size)
            # the last batch is filled up with its last row, so that no other shape is compiled
            rows = jax.tree.map(lambda x, index=index: x[np.minimum(index, count - 1)], inputs)
            guidance = guidance_numbers(config, [config.guidance_scale] * size)
            drawn = drawer.draw(Request(rows, null, guidance), method, np.full(size, seed), index)
            yield from drawn[: count - begin]

    def sampler(self, config: SamplingConfig, *, skip: int = 0, first: int | None = None) -> Sampler:
        """The sampler that a configuration names, less `skip` steps at its noisy end, or all of them from the timestep
        `first` on; raises UserError where `make_sampler` does."""
        if config.sampler == "imported" and self.imported_sampler is not None:
            if first is None:
                return self.imported_sampler.make(config, skip)
            config = dataclasses.replace(config, sampler="ddim")  # which starts at any timestep
        diffusion = self.experiment.diffusion
        learned = diffusion.variance == "learned"
        return make_sampler(
            *(config, self.model.schedule, diffusion.prediction_type),
            learned_variance=learned,
            skip=skip,
            first=first,
        )


def _no_data(split: Split) -> Source:
    raise UserError(f"this model came without data, from whose {split} split it could be given something; use --given")


def load_session(
    run_dir: Place,
    stage: Literal["autoencoder", "diffusion"] = "diffusion",
    step: int | None = None,
    *,
    ema_sigma_rel: float | None = None,
) -> Session:
    """The model of a trained run, with the averaged parameters of its newest good checkpoint, or of that of `step`.

    Of the stage `autoencoder` the parameters are `{"autoencoder": ...}` alone. With `ema_sigma_rel` what is trained is
    averaged with that relative width, rebuilt from the run's snapshots.

    Raises:
        UserError: the folder is not a run, the stage has no checkpoint yet, all of them are damaged, or there are no
            snapshots.
    """
    run = RunFolder(run_dir)
    experiment = run.load_config()
    if experiment.classifier is not None:
        raise UserError(
            f"{run_dir} is the run of a classifier, which draws nothing itself: ldm sample RUN --classifier it"
        )
    mesh = sharding.make_mesh(MeshConfig())
    model = make_model(experiment, mesh)
    init = model.init if stage == "diffusion" else model.init_autoencoder
    abstract = {"model": jax.eval_shape(init, rng.root_key(0))}
    spread = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, across_slices="fsdp"))  # each device reads a share
    checkpoints = run.checkpoints(stage)
    wanted = abstract_like(abstract, sharding.state_shardings(spread, abstract))
    in_part = stage == "autoencoder"  # which was trained against what its model is without
    restored = _restore(checkpoints, step, wanted, in_part=in_part)
    if restored is None:
        raise UserError(f"{run_dir} has no checkpoint of its {stage} stage yet; train it first with the same command")
    logger.info("%s: checkpoint of step %d", run_dir, restored[0])
    tokenizers = run.load_tokenizers(experiment.conditioning) if stage == "diffusion" else {}
    data = run.read_manifest().get("data", {})
    names, credit = tuple(data.get("class_names", ())), data.get("credit", "")
    encoder = PromptEncoder(tokenizers, warn=True) if tokenizers else None
    params, seal = restored[1]["model"], checkpoints.directory / f"{restored[0]:08d}.json"
    if ema_sigma_rel is not None:
        training = experiment.training if stage == "diffusion" else experiment.first_stage.training
        average = rebuild_average(run.snapshots(stage), training, wanted["model"], ema_sigma_rel, restored[0])
        params, seal = {**params, **average}, None
    shelf = GivenShelf(experiment, tuple(data.get("object_names", ())))
    return Session(experiment, model, params, encoder, names, credit, shelf=shelf, seal=seal)


def _restore(
    checkpoints: Checkpoints, step: int | None, wanted: dict[str, Any], *, in_part: bool
) -> tuple[int, dict[str, Any]] | None:
    if step is None:
        return checkpoints.restore_newest(wanted, in_part=in_part)
    if step not in checkpoints.steps():
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"{checkpoints.directory} has no checkpoint of step {step}; there are: {there}")
    return step, checkpoints.restore(step, wanted, in_part=in_part)
