"""From conditions to pictures: noise, guided sampling, decoding, as one compiled call.

Picture i of seed s depends on s and i alone: not on the batch it is drawn in, nor on the devices. What is drawn is
said in two parts: `Request` holds numbers, others of which do not compile again, and `Method` the choices that make
another program. Every task that draws is `denoiser_for` inside a sampler of its own, and `draw_from` is the plainest.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ldm_jax import rng
from ldm_jax.conditioning.conditions import Conditions, Inputs
from ldm_jax.conditioning.prompt_chunks import condition_on_chunks
from ldm_jax.config import GuidanceCalls, PredictionType
from ldm_jax.denoiser.classifier import log_probability
from ldm_jax.diffusion.guidance import Guidance, guide, guide_batched, guide_by_classifier, pair, usual_rule
from ldm_jax.diffusion.prediction import DenoiseFn
from ldm_jax.diffusion.samplers.sampler import Sampler, initial_noise, sample
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.nn.apply import apply
from ldm_jax.sampling.interpolation import Kind, interpolate_conditions, interpolate_noise


class Request(NamedTuple):
    """What a batch of pictures is to be: a tree of arrays, the sample axis first."""

    inputs: Inputs
    """Of the conditioner."""
    negative: Inputs
    """Replace those of their names where guidance leads away from something."""
    guidance: Guidance
    """One number of each kind for each sample."""
    towards: Inputs | None = None
    """Inputs at the other end of an interpolation."""
    fraction: Float[Array, " b"] | None = None
    """How far each sample is on its way there."""
    wanted: Int[Array, " b"] | None = None
    """Classes to which a classifier leads."""
    push: Float[Array, " b"] | None = None
    """How strongly."""
    seeds_to: Int[Array, " b"] | None = None
    """Seeds of the noise at the other end of an interpolation."""
    noise_fraction: Float[Array, " b"] | None = None
    """How far each sample is on its way there."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a batch is drawn: each another program."""

    guided: bool = True
    """Without guidance a step costs half as much, and the numbers of it are not looked at."""
    calls: GuidanceCalls = "one"
    """Calls of the denoiser in a guided step."""
    weaker: LatentDiffusion | None = None
    """A weaker model, from which guidance leads away in place of the negative inputs."""
    prediction_type: PredictionType = "epsilon"
    """What the denoiser predicts, for a classifier."""
    interpolation: Kind = "slerp"
    """Way between two conditions."""
    latent_shape: tuple[int, ...] | None = None
    """Shape of a latent, where it is another than the model was trained on."""


Generate: TypeAlias = Callable[
    [Params, Params | None, Sampler, Request, Int[Array, " b"], Int[Array, " b"]], Float[Array, "b *spatial c"]
]
"""Parameters, those of the weaker model, sampler, request, seeds and sample indices -> pictures."""


@functools.cache
def make_generate(model: LatentDiffusion, method: Method) -> Generate:
    """A function that draws pictures, around [-1, 1]; compiled once for each shape.

    Another prompt, seed, guidance or sampler of the same length does not compile again.
    """

    def generate(
        params: Params,
        weaker: Params | None,
        sampler: Sampler,
        request: Request,
        seeds: Int[Array, " b"],
        index: Int[Array, " b"],
    ) -> Float[Array, "b *spatial c"]:
        keys = rng.root_keys(seeds)
        noise = initial_noise(keys, index, method.latent_shape or model.latent_shape)
        noise = noise_between(request, noise, index)
        denoise_fn = denoiser_for(model, params, request, method, weaker)
        return draw_from(model, params, sampler, noise, denoise_fn, keys, index)

    return jax.jit(generate)


def noise_between(
    request: Request, noise: Float[Array, "b *latent z"], index: Int[Array, " b"]
) -> Float[Array, "b *latent z"]:
    """The noise, or what lies between it and that of another seed where the request leads to one."""
    if request.seeds_to is None or request.noise_fraction is None:
        return noise
    other = initial_noise(rng.root_keys(request.seeds_to), index, noise.shape[1:])
    return interpolate_noise(noise, other, request.noise_fraction)


def draw_from(
    model: LatentDiffusion,
    params: Params,
    sampler: Sampler,
    noise: Float[Array, "b *latent z"],
    denoise_fn: DenoiseFn,
    key: Key[Array, "*roots"],
    index: Int[Array, " b"],
) -> Float[Array, "b *spatial c"]:
    """Pictures, around [-1, 1], from standard normal noise of any size."""
    return model.decode(params, sample(sampler, denoise_fn, noise, key, index))


def denoiser_for(
    model: LatentDiffusion, params: Params, request: Request, method: Method, weaker: Params | None = None
) -> DenoiseFn:
    """The denoiser of a request, conditioned and guided; `weaker` are the parameters of the weaker model."""
    denoise_fn, classifier = _guided(model, params, request, method, weaker), model.classifier
    if classifier is None or request.wanted is None or request.push is None:
        return denoise_fn
    labels = request.wanted

    def certainty(zt: Float[Array, "b *latent z"], t: Num[Array, " b"]) -> Float[Array, " b"]:
        return log_probability(apply(classifier, params["classifier"], zt, t), labels)

    return guide_by_classifier(denoise_fn, certainty, model.schedule, method.prediction_type, request.push)


def _guided(
    model: LatentDiffusion, params: Params, request: Request, method: Method, weaker: Params | None = None
) -> DenoiseFn:

    def told(inputs: Inputs) -> DenoiseFn:
        return partial(model.denoise, params, conditions=_conditions(model, params, request, inputs, method))

    if not method.guided:
        return told(request.inputs)
    rule, other = usual_rule(model.schedule, request.guidance), {**request.inputs, **request.negative}
    if method.weaker is not None:
        assert weaker is not None  # whoever names the model has its parameters
        conditions = _conditions(method.weaker, weaker, request, request.inputs, method)
        return guide(told(request.inputs), partial(method.weaker.denoise, weaker, conditions=conditions), rule)
    if method.calls == "two":
        away = request._replace(towards=None, fraction=None)
        conditions = _conditions(model, params, away, other, method)
        return guide(told(request.inputs), partial(model.denoise, params, conditions=conditions), rule)
    paired = request
    if request.towards is not None and request.fraction is not None:
        still = jnp.zeros_like(request.fraction)
        paired = request._replace(towards=pair(request.towards, other), fraction=pair(request.fraction, still))
    conditions = _conditions(model, params, paired, pair(request.inputs, other), method)
    return guide_batched(partial(model.denoise, params, conditions=conditions), rule)


def _conditions(model: LatentDiffusion, params: Params, request: Request, inputs: Inputs, method: Method) -> Conditions:
    """What the denoiser is told of `inputs`, or on the way from them to where the request leads."""
    condition = partial(condition_on_chunks, partial(model.condition, params), model.conditioner)
    if request.towards is None or request.fraction is None:
        return condition(inputs)
    ends = condition(inputs), condition(request.towards)
    return interpolate_conditions(*ends, request.fraction, method.interpolation)
