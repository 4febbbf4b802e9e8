"""Classifier-free guidance: a denoiser made of a conditional and an unconditional one.

(1) prediction = (1 - scale) * unconditional + scale * conditional      Ho and Salimans 2022, arXiv:2207.12598, eq. 6,
    with scale = 1 + w; Stable Diffusion writes the same as unconditional + scale * (conditional - unconditional)

The sum is written as in (1) because it is then exactly the conditional prediction at scale 1 and the unconditional
one at scale 0. A negative prompt takes the place of the empty one: nothing changes here.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ldm_jax.diffusion.prediction import DenoiseFn
from ldm_jax.diffusion.schedule import PerSample, per_sample

Scale: TypeAlias = float | int | PerSample
"""Guidance scale for all samples, or one for each; as an array it can change without recompilation."""


def guide(conditional: DenoiseFn, unconditional: DenoiseFn, scale: Scale) -> DenoiseFn:
    """Guide with two calls for each step (1): least memory, and the two may be different networks."""

    def denoise(zt: Float[Array, "b *spatial c"], t: Num[Array, " b"]) -> Float[Array, "b *spatial c"]:
        return _combine(conditional(zt, t), unconditional(zt, t), scale)

    return denoise


def guide_batched(denoise_pairs: DenoiseFn, scale: Scale) -> DenoiseFn:
    """Guide with one call of twice the batch for each step (1): `denoise_pairs` is given what `pair` makes.

    Its condition must be paired in the same way: `denoise_pairs = partial(denoise, context=pair(context, empty))`.
    """

    def denoise(zt: Float[Array, "b *spatial c"], t: Num[Array, " b"]) -> Float[Array, "b *spatial c"]:
        prediction = denoise_pairs(pair(zt, zt), pair(t, t)).reshape(-1, 2, *zt.shape[1:])
        return _combine(prediction[:, 0], prediction[:, 1], scale)

    return denoise


def pair(conditional: Any, unconditional: Any) -> Any:
    """Interleave two equal trees of arrays `[b, ...]` into `[2b, ...]`: each conditional row before its unconditional.

    Neighbours rather than halves, because a batch that is sharded over devices then stays where it is.
    """
    return jax.tree.map(lambda c, u: jnp.stack([c, u], axis=1).reshape(-1, *c.shape[1:]), conditional, unconditional)


def _combine(
    conditional: Float[Array, "b *spatial c"], unconditional: Float[Array, "b *spatial c"], scale: Scale
) -> Float[Array, "b *spatial c"]:
    weight = per_sample(jnp.asarray(scale, jnp.float32), conditional)
    return (1.0 - weight) * unconditional + weight * conditional
