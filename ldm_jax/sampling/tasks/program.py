"""From pictures to pictures as one compiled call: encode, start, sample, decode.

A task says where sampling starts, from which latent, and which part of it is known; samplers, guidance and conditions
are those of any other picture.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_jax import rng
from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.diffusion.inpainting import keep_known
from ldm_jax.diffusion.samplers import Sampler, initial_noise, sample_from
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.sampling.generate import Method, Request, denoiser_for, noise_between
from ldm_jax.sampling.interpolation import interpolate_noise
from ldm_jax.sampling.tasks.image_to_image import noised
from ldm_jax.sampling.tasks.task import TaskKind


class TaskArrays(NamedTuple):
    """The pictures of a batch: a tree of arrays, the sample axis first."""

    image: Float[Array, "b h w c"]
    """In [-1, 1]."""
    image_to: Float[Array, "b h w c"] | None = None
    fraction: Float[Array, " b"] | None = None
    """How far each sample is on its way to the other picture."""
    hole: Float[Array, "b y x 1"] | None = None
    """Cells of the latent that are made up."""
    seen: Float[Array, " b"] | None = None
    """Whether sampling starts from what is in the hole (1), or knows nothing of it (0)."""
    source: Inputs | None = None
    """Inputs under which a picture is led back to its noise."""


class TaskSamplers(NamedTuple):
    """Ways between latents and noise."""

    sampler: Sampler
    inversion: Sampler | None = None
    """From the latent to where `sampler` starts."""


class Made(NamedTuple):
    """Pictures, around [-1, 1], and how far their latents are from those of the pictures that were given."""

    images: Float[Array, "b h w c"]
    latent_error: Float[Array, " b"]
    """Mean square of the difference, in latents of unit spread."""
    reconstruction: Float[Array, "b h w c"] | None
    """Of inversion: the given pictures through the autoencoder alone."""


MakePictures: TypeAlias = Callable[
    [Params, Params | None, TaskSamplers, Request, TaskArrays, Int[Array, " b"], Int[Array, " b"]], Made
]
"""Parameters, those of the weaker model, samplers, request, pictures, seeds and sample indices -> pictures."""


@functools.cache
def make_task(model: LatentDiffusion, method: Method, kind: TaskKind) -> MakePictures:
    """A function that makes pictures from pictures; compiled once for each shape and number of steps."""

    def make(
        params: Params,
        weaker: Params | None,
        samplers: TaskSamplers,
        request: Request,
        task: TaskArrays,
        seeds: Int[Array, " b"],
        index: Int[Array, " b"],
    ) -> Made:
        keys, sampler = rng.root_keys(seeds), samplers.sampler
        z0 = model.likeliest_latent(params, task.image)

        def start(z0: Float[Array, "b *latent z"]) -> Float[Array, "b *latent z"]:
            if kind == "denoise":
                return sampler.start.alpha * z0
            if samplers.inversion is not None and task.source is not None:
                source = Request(task.source, {}, request.guidance)
                denoise_fn = denoiser_for(model, params, source, Method(guided=False))
                return sample_from(samplers.inversion, denoise_fn, z0, keys, index)
            noise = initial_noise(keys, index, z0.shape[1:])
            return noised(sampler.start, z0, noise_between(request, noise, index))

        denoise_fn = denoiser_for(model, params, request, method, weaker)
        if task.hole is not None and task.seen is not None:
            denoise_fn = keep_known(denoise_fn, z0, task.hole, model.schedule, method.prediction_type)
            zt = start(z0 * (1.0 - task.hole * (1.0 - task.seen.reshape(-1, 1, 1, 1))))
        else:
            zt = start(z0)
        if task.image_to is not None and task.fraction is not None:
            other = start(model.likeliest_latent(params, task.image_to))
            zt = interpolate_noise(zt, other, task.fraction)
        z = sample_from(sampler, denoise_fn, zt, keys, index)
        if task.hole is not None:
            z = jnp.where(task.hole > 0.5, z, z0)
        error = jnp.mean(jnp.square(z - z0), axis=tuple(range(1, z0.ndim)))
        return Made(model.decode(params, z), error, model.decode(params, z0) if kind == "invert" else None)

    return jax.jit(make)
