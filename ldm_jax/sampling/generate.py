"""From conditions to pictures: noise, guided sampling, decoding, as one compiled call.

Picture i of seed s depends on s and i alone: not on the batch it is drawn in, nor on the devices.
"""

import functools
from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float, Int, Key

from ldm_jax.conditioning.conditions import Inputs
from ldm_jax.diffusion.guidance import guide_batched, pair
from ldm_jax.diffusion.samplers.sampler import Sampler, initial_noise, sample
from ldm_jax.model import LatentDiffusion, Params

Generate = Callable[
    [Params, Sampler, Inputs, Inputs, Float[Array, " b"], Key[Array, ""], Int[Array, " b"]],
    Float[Array, "b *spatial c"],
]
"""Parameters, sampler, inputs, negative inputs, guidance scale and root key, sample indices -> pictures."""


@functools.cache
def make_generate(model: LatentDiffusion, *, guided: bool) -> Generate:
    """A function that draws pictures, around [-1, 1]; compiled once for each shape.

    Another prompt, seed, guidance scale or sampler of the same length does not compile again. Negative inputs replace
    those of their names. Without `guided` they and the scale are not looked at, and each step costs half as much.
    """

    def generate(
        params: Params,
        sampler: Sampler,
        inputs: Inputs,
        negative: Inputs,
        scale: Float[Array, " b"],
        key: Key[Array, ""],
        index: Int[Array, " b"],
    ) -> Float[Array, "b *spatial c"]:
        noise = initial_noise(key, index, model.latent_shape)
        return draw_from(model, params, sampler, noise, inputs, negative, scale if guided else None, key, index)

    return jax.jit(generate)


def draw_from(
    model: LatentDiffusion,
    params: Params,
    sampler: Sampler,
    noise: Float[Array, "b *latent z"],
    inputs: Inputs,
    negative: Inputs,
    scale: Float[Array, " b"] | None,
    key: Key[Array, ""],
    index: Int[Array, " b"],
) -> Float[Array, "b *spatial c"]:
    """Pictures, around [-1, 1], from standard normal noise of any size; a `scale` of None does not guide."""
    conditions = model.condition(params, inputs if scale is None else pair(inputs, {**inputs, **negative}))
    denoise_fn = partial(model.denoise, params, conditions=conditions)
    if scale is not None:
        denoise_fn = guide_batched(denoise_fn, scale)
    return model.decode(params, sample(sampler, denoise_fn, noise, key, index))
