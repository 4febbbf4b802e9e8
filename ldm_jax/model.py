"""The bundle: autoencoder, latent scale, conditioner, denoiser and schedule behind one door.

Parameters live outside, in a nested dict with the keys `autoencoder`, `latent`, `conditioner` and `denoiser`. The
denoiser works on latents of unit spread:

(1) z0 = (z - mean) / std, with mean and std of the latents of the whole data set; one std for all channels and mean 0
    is LDM's scale factor 1 / std (arXiv:2112.10752, appendix G)
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from ldm_jax import rng, sharding
from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.autoencoder.kl import AutoencoderKL
from ldm_jax.autoencoder.posterior import DiagonalGaussian
from ldm_jax.autoencoder.vq import AutoencoderVQ
from ldm_jax.conditioning.build import Conditioner, make_conditioner
from ldm_jax.conditioning.classes import ClassEmbedder
from ldm_jax.conditioning.clip_text import SdxlConditioner
from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.conditioning.masked import masked_channels
from ldm_jax.conditioning.spatial import SpatialRescaler
from ldm_jax.config import Experiment, MaskedPicture
from ldm_jax.denoiser.classifier import NoisyClassifier
from ldm_jax.denoiser.unet import UNet
from ldm_jax.diffusion.schedule import NoiseSchedule, make_schedule
from ldm_jax.errors import UserError
from ldm_jax.nn.apply import apply
from ldm_jax.nn.dot_product_attention import AttentionKernel
from ldm_jax.nn.resample import resampling_factors

Params = dict[str, Any]


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A latent diffusion model; every method is a pure function of the parameters and its arguments."""

    autoencoder: AutoencoderKL | AutoencoderVQ
    conditioner: Conditioner
    denoiser: UNet
    schedule: NoiseSchedule
    image_shape: tuple[int, ...]
    """Height, width and channels of a picture."""
    latent_shape: tuple[int, ...]
    """Height, width and channels of a latent."""
    classifier: NoisyClassifier | None = None
    """What guides the denoiser beside its conditions, with parameters under `classifier`, where there is one."""
    masked: MaskedPicture | None = None
    """How inputs `masked` and `mask` become channels, where the model is given a picture with holes."""

    def init_autoencoder(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters of the autoencoder: `{"autoencoder": ...}`."""
        image = jnp.zeros((1, *self.image_shape))
        keys = rng.sample_keys(key, jnp.arange(1))
        return {"autoencoder": self.autoencoder.init(key, image, keys)["params"]}

    def init_denoiser(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters of what the second stage trains: `{"conditioner": ..., "denoiser": ...}`."""
        inputs = {**self.conditioner.null_inputs(1), **self._plain_inputs(1)}
        variables = self.conditioner.init(rng.named_key(key, "conditioner"), inputs)
        conditioner: Params = dict(variables).get("params", {})
        conditions = self.condition({"conditioner": conditioner}, inputs)
        zt = jnp.zeros((1, *self.latent_shape))
        t = jnp.zeros((1,), jnp.int32)
        denoiser = self.denoiser.init(rng.named_key(key, "denoiser"), zt, t, **conditions._asdict())
        return {"conditioner": conditioner, "denoiser": denoiser["params"]}

    def init_latent(self) -> Params:
        """The latent statistics that change nothing: `{"latent": {"mean": 0, "std": 1}}`."""
        channels = self.latent_shape[-1]
        return {"latent": {"mean": jnp.zeros(channels), "std": jnp.ones(channels)}}

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters of the whole model."""
        return {**self.init_autoencoder(key), **self.init_latent(), **self.init_denoiser(key)}

    def encode(self, params: Params, image: Float[Array, "b *spatial c"]) -> DiagonalGaussian:
        """Posterior of the autoencoder's own latents of pictures in [-1, 1]."""
        return apply(self.autoencoder, params["autoencoder"], image, method="encode")

    def normalize(self, params: Params, z: Float[Array, "b *latent c"]) -> Float[Array, "b *latent c"]:
        """Autoencoder's latents to the denoiser's (1)."""
        return (z - params["latent"]["mean"]) / params["latent"]["std"]

    def likeliest_latent(self, params: Params, image: Float[Array, "b *spatial c"]) -> Float[Array, "b *latent z"]:
        """The denoiser's latents of pictures in [-1, 1] at the mode of their posterior."""
        return self.normalize(params, self.encode(params, image).mode())

    def condition(
        self, params: Params, inputs: Inputs, *, train: bool = False, dropout_key: Key[Array, ""] | None = None
    ) -> Conditions:
        """What the denoiser is told about `inputs`: the conditioner's (tokens, labels), and `concat` and `class_labels`
        as they are where the conditioner makes none; `masked` and `mask` become `concat`. A `context`, and with it
        `pooled`, is what `embed_texts` has made before."""
        if "context" in inputs and "pooled" not in inputs:
            conditions = Conditions(context=inputs["context"])
        else:
            conditions = apply(self.conditioner, params["conditioner"], inputs, key=dropout_key, train=train)
        given = {name: inputs[name] for name in self._plain_inputs(1) if name in inputs}
        if self.masked is not None and "masked" in inputs:
            latents = self.likeliest_latent(params, inputs["masked"])
            given["concat"] = masked_channels(latents, inputs["mask"], self.masked.order)
        return conditions._replace(**given)

    def embed_texts(self, params: Params, inputs: Inputs) -> Inputs:
        """What a frozen text encoder makes of tokens, to be given as inputs in their place: the `context` [b, l, d],
        and of SDXL's pair the `pooled` text [b, e]."""
        if isinstance(self.conditioner, SdxlConditioner):
            return apply(self.conditioner, params["conditioner"], inputs, method="embed")
        context = self.condition(params, inputs).context
        assert context is not None  # other conditioners have no text
        return {"context": context}

    def null_inputs(self, batch: int) -> Inputs:
        """The inputs of `batch` samples about which nothing is said; of a picture with holes, all is a hole."""
        inputs = {**self.conditioner.null_inputs(batch), **self._plain_inputs(batch)}
        if self.masked is None:
            return inputs
        hole = jnp.full((batch, *self.image_shape), self.masked.hole)
        rest = {name: value for name, value in inputs.items() if name != "concat"}
        return {**rest, "masked": hole, "mask": jnp.ones((batch, *self.image_shape[:-1], 1))}

    def _plain_inputs(self, batch: int) -> Inputs:
        """Inputs that reach the denoiser without a conditioner: maps to concatenate, and labels beside a text."""
        inputs, config = {}, self.denoiser.config
        if config.concat_channels and not isinstance(self.conditioner, SpatialRescaler):
            inputs["concat"] = jnp.zeros((batch, *self.latent_shape[:-1], config.concat_channels))
        if config.num_classes is not None and not isinstance(self.conditioner, ClassEmbedder):
            inputs["class_labels"] = jnp.zeros((batch,), jnp.int32)
        return inputs

    def denoise(
        self,
        params: Params,
        zt: Float[Array, "b *latent c"],
        t: Int[Array, " b"] | Float[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b *latent o"]:
        """The denoiser's prediction for the noisy latents `zt` at times `t`, and behind it what it has learned of the
        variance, if it learns that."""
        return apply(self.denoiser, params["denoiser"], zt, t, key=dropout_key, train=train, **conditions._asdict())

    def decode(self, params: Params, z0: Float[Array, "b *latent z"]) -> Float[Array, "b *spatial c"]:
        """Pictures, around [-1, 1], of the denoiser's latents."""
        z = z0 * params["latent"]["std"] + params["latent"]["mean"]  # inverse of (1)
        return apply(self.autoencoder, params["autoencoder"], z, method="decode")


def make_classifier(experiment: Experiment) -> NoisyClassifier:
    """The classifier that an experiment trains.

    Raises:
        UserError: it trains a denoiser.
    """
    if experiment.classifier is None:
        raise UserError(f"{experiment.name} has no classifier")
    return NoisyClassifier(experiment.classifier, jnp.dtype(experiment.compute_dtype))


def make_model(experiment: Experiment, mesh: Mesh | None = None) -> LatentDiffusion:
    """The modules and the schedule that an experiment describes; no parameters yet.

    `mesh` holds the devices that the model is compiled for, here or elsewhere: they decide the kernel of attention,
    which is split over them. Without one it is for the first device of this machine.
    """
    config, dtype = experiment.first_stage.autoencoder, experiment.compute_dtype
    image = (experiment.data.image_size,) * config.spatial_dims
    per_level, levels = resampling_factors(config.spatial_dims), len(config.channel_mult) - 1
    latent = tuple(size // (config.patch_size * factor**levels) for size, factor in zip(image, per_level, strict=True))
    kernel = AttentionKernel.choose(experiment.attention_kernel, mesh)
    return LatentDiffusion(
        autoencoder=make_autoencoder(
            config,
            experiment.data.image_channels,
            dtype,
            kernel,
            experiment.first_stage.training.remat,
            experiment.strip_rows,
        ),
        conditioner=make_conditioner(
            experiment.conditioning,
            dtype,
            image_size=experiment.data.image_size,
            latent_size=latent,
            kernel=kernel,
        ),
        denoiser=UNet(
            experiment.denoiser,
            config.latent_channels * (2 if experiment.diffusion.variance == "learned" else 1),
            jnp.dtype(dtype),
            kernel,
            experiment.training.remat,
        ),
        schedule=make_schedule(experiment.diffusion.schedule),
        image_shape=(*image, experiment.data.image_channels),
        latent_shape=(*latent, config.latent_channels),
        masked=experiment.given if isinstance(experiment.given, MaskedPicture) else None,
    )


def require_diffusion_of_pictures(experiment: Experiment) -> None:
    """Refuse what can be imported and called, but neither be trained on pictures nor draw them.

    Raises:
        UserError: naming the field.
    """
    dims, ids = experiment.denoiser.spatial_dims, experiment.denoiser.num_codebook_ids
    if dims != 2:
        raise UserError(f"denoiser.spatial_dims={dims} is not for pictures, which are the only data here; use 2")
    if ids is not None:
        raise UserError(f"denoiser.num_codebook_ids={ids} predicts codebook entries and no latents; use None")


def num_parameters(params: Params) -> int:
    """Number of values in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def hash_params(params: Any) -> str:
    """SHA-256 (hex) of a tree of arrays, in the order of its paths: names, types, shapes and values.

    Of arrays that several processes share, all of them have to call it.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    digest = hashlib.sha256()
    for path, leaf in sorted(leaves, key=lambda entry: sharding.path_names(entry[0])):
        array = np.ascontiguousarray(sharding.to_host(leaf))
        digest.update(json.dumps([sharding.path_names(path), str(array.dtype), array.shape]).encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
