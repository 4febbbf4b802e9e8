"""How likely a model finds held-out pictures: every term of its bound for each picture, kept part by part.

(1) bound of a latent = prior + sum_t KL_t + decoder, or the flow's likelihood in its place: `diffusion/likelihood.py`
(2) bound of a picture = reconstruction - entropy + (1): `autoencoder/likelihood.py`, eq. 1

All in bits per dimension, the latent's for (1) and the picture's for (2). z is a draw of the posterior of each picture,
standardised, so entropy and (1) are both those of z0; each picture is conditioned on its own class or caption.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ldm_jax import rng, sharding
from ldm_jax.autoencoder.likelihood import fitted_scale, mean_error, picture_log_likelihood
from ldm_jax.autoencoder.posterior import DiagonalGaussian
from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.conditioning.tokenizer import token_inputs
from ldm_jax.config import AutoencoderVQConfig, ClassConditioning, MeshConfig, to_dict
from ldm_jax.data.preparation import digest
from ldm_jax.data.source import Source
from ldm_jax.data.sources import load_source
from ldm_jax.diffusion.likelihood import flow_likelihood, variational_bound
from ldm_jax.errors import UserError
from ldm_jax.evaluation.chunks import Chunks, Part, all_parts
from ldm_jax.evaluation.drawing import heldout_given
from ldm_jax.evaluation.pictures import PictureSet, local_batch, local_size, source_pictures
from ldm_jax.model import Params, hash_params, make_model, require_diffusion_of_pictures
from ldm_jax.sampling.session import Session

LikelihoodKind: TypeAlias = Literal["bound", "flow", "both"]

SCALE_PICTURES = 256
"""Training pictures from which the decoder's scale is taken."""


class LikelihoodOptions(NamedTuple):
    """What is computed, and how."""

    kind: LikelihoodKind
    flow_steps: int
    flow_probes: int
    """Random signs for the divergence; 0 takes it exactly."""
    seed: int


class Likelihoods(NamedTuple):
    """What was found for each held-out picture, in bits per dimension."""

    latent: dict[str, Float[np.ndarray, "n *t"]]
    """`prior` [n], `kl` [n, T - 1] and `decoder` [n] of (1), and `flow` [n], as far as asked for; of the latent."""
    picture: dict[str, Float[np.ndarray, " n"]]
    """`reconstruction` and `entropy` of (2), of the picture; empty where a posterior is a point."""
    latent_size: int
    picture_size: int
    scale: float | None
    """The decoder's, where 0..255 are -1..1."""
    pictures: PictureSet
    weights: str
    """Checksum of the model's parameters."""

    def latent_totals(self) -> dict[str, Float[np.ndarray, " n"]]:
        """(1) by `bound` and by `flow`."""
        totals = {"flow": self.latent["flow"]} if "flow" in self.latent else {}
        if "kl" in self.latent:
            terms = self.latent
            totals = {"bound": terms["prior"] + terms["kl"].sum(1) + terms["decoder"]} | totals
        return totals

    def picture_totals(self) -> dict[str, Float[np.ndarray, " n"]]:
        """(2) by `bound` and by `flow`."""
        if not self.picture:
            return {}
        own, share = self.picture["reconstruction"] - self.picture["entropy"], self.latent_size / self.picture_size
        return {name: own + share * values for name, values in self.latent_totals().items()}


def likelihoods(
    session: Session, options: LikelihoodOptions, *, count: int, batch_size: int, cache: Path
) -> Likelihoods:
    """Measure the first `count` held-out pictures of a run's data.

    Raises:
        UserError: there is no denoiser, the data lack the model's conditions, or a number of steps is out of range.
    """
    session.require_denoiser()
    require_diffusion_of_pictures(session.experiment)
    data, first = session.experiment.data, session.experiment.first_stage
    held_out = load_source(data, "test")
    pictures = source_pictures(held_out, data)
    if pictures.count < 2:
        raise UserError(f"{pictures.name} has {pictures.count} pictures, of which no interval can be given; use more")
    pictures = dataclasses.replace(pictures, count=min(pictures.count, count))
    measure = _Measure(session, options, batch_size, cache)
    scale = None
    if not isinstance(first.autoencoder, AutoencoderVQConfig):
        training = source_pictures(load_source(data, "train"), data)
        errors = measure.errors(dataclasses.replace(training, count=min(training.count, SCALE_PICTURES)))
        scale = fitted_scale(first.reconstruction_loss, errors)
    found = measure.terms(pictures, own_conditions(session, held_out), scale)
    picture = {name: found.pop(name) for name in ("reconstruction", "entropy") if name in found}
    sizes = int(np.prod(session.model.latent_shape)), int(np.prod(session.model.image_shape))
    return Likelihoods(found, picture, *sizes, scale, pictures, measure.weights)


def own_conditions(session: Session, source: Source) -> Callable[[Int[np.ndarray, " b"]], Inputs]:
    """From indices in the held-out split to the inputs for its own captions or classes, and for what it gives beside.

    Raises:
        UserError: the data have none of what the model is told.
    """
    told = _own_words(session, source)
    return lambda index: dict(told(index)) | heldout_given(session, index)


def _own_words(session: Session, source: Source) -> Callable[[Int[np.ndarray, " b"]], Inputs]:
    conditioning, info = session.experiment.conditioning, source.info
    if token_inputs(conditioning):
        if not info.has_captions:
            raise UserError(f"the data set {info.name} has no captions, which this model is told; use data that have")
        return lambda index: session.prompt_inputs([source.annotation(int(i))["caption"] for i in index])
    if isinstance(conditioning, ClassConditioning):
        if len(info.class_names) != conditioning.num_classes:
            raise UserError(
                f"the data set {info.name} has {len(info.class_names)} classes, and this model knows "
                f"{conditioning.num_classes}; use the data that it was trained on"
            )
        return lambda index: {
            "class_labels": jnp.asarray([source.annotation(int(i))["label"] for i in index], jnp.int32)
        }
    return lambda index: session.null_inputs(len(index))


class _Measure:
    """The compiled functions of a model on the devices of this process."""

    def __init__(self, session: Session, options: LikelihoodOptions, batch_size: int, cache: Path) -> None:
        self._mesh = sharding.make_mesh(MeshConfig(), jax.local_devices())
        self._model = make_model(session.experiment, self._mesh)
        params = sharding.within_reach(session.params)
        self._params = sharding.place(self._mesh, params)
        self._size = local_size(batch_size)
        self._experiment, self._options, self._cache = session.experiment, options, cache
        self.weights = hash_params(params)

    def errors(self, pictures: PictureSet) -> Float[np.ndarray, " n"]:
        """Errors of draws of the posterior, decoded."""
        compute = jax.jit(self._errors_of)
        found = self._all(pictures, ["errors"], lambda image, index: {"error": compute(self._params, image, index)})
        return found["error"]

    def terms(
        self, pictures: PictureSet, conditions: Callable[[Int[np.ndarray, " b"]], Inputs], scale: float | None
    ) -> Part:
        """The terms (1) and (2) of each picture, those of pictures where there is a scale."""
        compute = jax.jit(self._terms_of)

        def one(image: Array, index: Int[np.ndarray, " b"]) -> dict[str, Array]:
            inputs = sharding.place_batch(self._mesh, conditions(index))
            return compute(self._params, image, index, inputs, scale)

        return self._all(pictures, ["terms", scale], one)

    def _all(self, pictures: PictureSet, what: list[Any], compute: Callable[..., dict[str, Array]]) -> Part:
        def part(start: int, stop: int) -> Part:
            image = sharding.place_batch(self._mesh, local_batch(pictures.read(start, stop), self._size))
            index = np.minimum(np.arange(start, start + self._size), stop - 1)
            return {name: np.asarray(rows)[: stop - start] for name, rows in compute(image, index).items()}

        config = to_dict(self._experiment)
        made_of = [config["diffusion"], config["first_stage"]["reconstruction_loss"], *self._options, self._size]
        made_of += [] if config["given"] is None else [config["given"]]
        fingerprint = digest(["likelihood", what, self.weights, pictures.fingerprint, made_of])
        chunks = Chunks(folder=self._cache, fingerprint=fingerprint, size=self._size)
        return all_parts(chunks, pictures.count, part, what=f"{what[0]}: {pictures.name}")

    def _latents(
        self, params: Params, image: UInt8[Array, "b h w c"], index: Int[Array, " b"]
    ) -> tuple[Float[Array, "b h w c"], DiagonalGaussian, Float[Array, "b *latent z"], Float[Array, "b h w c"]]:
        """Pictures in [-1, 1], posterior, z0, and what is decoded of it."""
        x = image.astype(jnp.float32) / 127.5 - 1
        posterior = self._model.encode(params, x)
        z0 = self._model.normalize(params, posterior.sample(self._keys("likelihood_posterior", index)))
        return x, posterior, z0, self._model.decode(params, z0)

    def _keys(self, name: str, index: Int[Array, " b"]) -> Array:
        return rng.sample_keys(rng.named_key(rng.root_key(self._options.seed), name), index)

    def _errors_of(self, params: Params, image: UInt8[Array, "b h w c"], index: Int[Array, " b"]) -> Array:
        x, _, _, decoded = self._latents(params, image, index)
        return mean_error(self._experiment.first_stage.reconstruction_loss, x, decoded)

    def _terms_of(
        self,
        params: Params,
        image: UInt8[Array, "b h w c"],
        index: Int[Array, " b"],
        inputs: Inputs,
        scale: Float[Array, ""] | None,
    ) -> dict[str, Array]:
        x, posterior, z0, decoded = self._latents(params, image, index)
        conditions = self._model.condition(params, inputs)
        terms = self._latent_terms(partial(self._model.denoise, params, conditions=conditions), z0, index)
        if scale is None:
            return terms
        log_std = jnp.sum(jnp.broadcast_to(jnp.log(params["latent"]["std"]), z0.shape[1:]))
        found = picture_log_likelihood(self._experiment.first_stage.reconstruction_loss, x, decoded, scale)
        bits = 1 / (np.log(2) * x[0].size)
        return {**terms, "reconstruction": -bits * found, "entropy": bits * (posterior.entropy() - log_std)}

    def _latent_terms(
        self, denoise_fn: Callable[..., Array], z0: Float[Array, "b *latent z"], index: Int[Array, " b"]
    ) -> dict[str, Array]:
        options, terms = self._options, {}
        common = (self._model.schedule, self._experiment.diffusion.prediction_type, denoise_fn, z0)
        if options.kind != "flow":
            keys, learned = self._keys("likelihood_noise", index), self._experiment.diffusion.variance == "learned"
            bound = variational_bound(*common, keys, "learned" if learned else "large")
            terms |= {"prior": bound.prior, "kl": bound.kl.T, "decoder": bound.decoder}
        if options.kind != "bound":
            keys, probes = self._keys("likelihood_signs", index), options.flow_probes or None
            terms["flow"] = flow_likelihood(*common, keys, num_steps=options.flow_steps, num_probes=probes)
        return terms
