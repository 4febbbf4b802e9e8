"""Guidance: a denoiser made of others, by extrapolation from a worse prediction to a better one, or by a classifier.

(1) prediction = (1 - scale) * other + scale * conditional             Ho and Salimans 2022, arXiv:2207.12598, eq. 6,
    with scale = 1 + w; Stable Diffusion writes the same as other + scale * (conditional - other)
(2) rescaled = prediction * std(conditional) / std(prediction),        Lin et al. 2023, arXiv:2305.08891, eq. 14 to 16
    share * rescaled + (1 - share) * prediction
(3) guide only while low < sigma_t / alpha_t <= high                   Kynkaanniemi et al. 2024, arXiv:2404.07724, eq. 6
(4) epsilon <- epsilon - scale * sigma_t * grad log p(y | z_t)         Dhariwal and Nichol 2021, 2105.05233, algorithm 2

What is extrapolated from decides the kind: without the condition it is classifier-free guidance (1), with another text
in its place a negative prompt, and with the same condition but a weaker model autoguidance (Karras et al. 2024,
arXiv:2406.02507, eq. 3). All are the same function here: `guide(conditional, other, rule)`. The sum is written as in
(1) because it is then exactly the conditional prediction at scale 1 and the other one at scale 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.learned_variance import split_output
from ldm_jax.diffusion.prediction import DenoiseFn, target_for
from ldm_jax.diffusion.schedule import NoiseSchedule, PerSample, per_sample

Latent: TypeAlias = Float[Array, "b *spatial c"]
Output: TypeAlias = Float[Array, "b *spatial o"]
"""A prediction, and behind it the channels of a learned variance, if there is one."""
Times: TypeAlias = Num[Array, " b"]

Scale: TypeAlias = float | int | PerSample
"""Guidance scale for all samples, or one for each; as an array it can change without recompilation."""

Rule: TypeAlias = Callable[[Latent, Latent, Times], Latent]
"""Conditional prediction, the other one and their times to the guided prediction."""

LogProbability: TypeAlias = Callable[[Latent, Times], Float[Array, " b"]]
"""How probable a classifier holds what each sample is wanted to be, as a logarithm."""


class Guidance(NamedTuple):
    """The numbers of the usual rule, for all samples or one for each; others do not compile anew."""

    scale: Scale
    """Weight of the conditional prediction (1); 1 is no guidance."""
    rescale: Scale = 0.0
    """Share of (2)."""
    low: Scale = 0.0
    """Lower bound of (3)."""
    high: Scale = jnp.inf
    """Upper bound of (3)."""


def linear(scale: Scale) -> Rule:
    """Extrapolate by `scale` (1)."""

    def combine(conditional: Latent, other: Latent, t: Times) -> Latent:
        del t
        weight = per_sample(jnp.asarray(scale, jnp.float32), conditional)
        return (1.0 - weight) * other + weight * conditional

    return combine


def rescaled(rule: Rule, share: Scale) -> Rule:
    """Bring the result of `rule` back to the spread of each sample's conditional prediction, by `share` (2)."""

    def combine(conditional: Latent, other: Latent, t: Times) -> Latent:
        guided, axes = rule(conditional, other, t), tuple(range(1, conditional.ndim))
        wanted = jnp.std(conditional.astype(jnp.float32), axis=axes, keepdims=True)
        found = jnp.std(guided, axis=axes, keepdims=True)
        factor = jnp.where(found > 0, wanted / jnp.where(found > 0, found, 1.0), 1.0)
        weight = per_sample(jnp.asarray(share, jnp.float32), guided)
        # as a factor, so that a share of 0 changes nothing, to the bit
        return guided * (1.0 + weight * (factor - 1.0))

    return combine


def limited(rule: Rule, applies: Callable[[Times], Bool[Array, " b"]]) -> Rule:
    """Use `rule` at the times at which it applies, and the conditional prediction alone at the others."""

    def combine(conditional: Latent, other: Latent, t: Times) -> Latent:
        guided = rule(conditional, other, t)
        is_on = applies(t).reshape(-1, *(1 for _ in guided.shape[1:]))
        return jnp.where(is_on, guided, conditional.astype(guided.dtype))

    return combine


def between(schedule: NoiseSchedule, low: Scale, high: Scale) -> Callable[[Times], Bool[Array, " b"]]:
    """Whether the noise level sigma / alpha at a time lies in `(low, high]` (3)."""

    def applies(t: Times) -> Bool[Array, " b"]:
        alpha, sigma = levels_at(schedule, t)
        return (sigma > low * alpha) & (sigma <= jnp.where(jnp.isinf(high), jnp.inf, high * alpha))

    return applies


def usual_rule(schedule: NoiseSchedule, guidance: Guidance) -> Rule:
    """Extrapolate (1), rescale (2), in an interval of noise levels (3)."""
    rule = rescaled(linear(guidance.scale), guidance.rescale)
    return limited(rule, between(schedule, guidance.low, guidance.high))


def guide(conditional: DenoiseFn, other: DenoiseFn, rule: Rule) -> DenoiseFn:
    """Guide with two calls for each step: least memory, and the two may be different networks."""

    def denoise(zt: Latent, t: Times) -> Output:
        return _guided(rule, conditional(zt, t), other(zt, t), zt, t)

    return denoise


def guide_batched(denoise_pairs: DenoiseFn, rule: Rule) -> DenoiseFn:
    """Guide with one call of twice the batch for each step: `denoise_pairs` is given what `pair` makes.

    Its condition must be paired in the same way: `denoise_pairs = partial(denoise, context=pair(context, empty))`.
    """

    def denoise(zt: Latent, t: Times) -> Output:
        prediction = denoise_pairs(pair(zt, zt), pair(t, t))
        pairs = prediction.reshape(-1, 2, *prediction.shape[1:])
        return _guided(rule, pairs[:, 0], pairs[:, 1], zt, t)

    return denoise


def _guided(rule: Rule, conditional: Output, other: Float[Array, "b *spatial p"], zt: Latent, t: Times) -> Output:
    """The guided prediction; a learned variance is the conditional one's, as in guided-diffusion."""
    (prediction, v), (away, _) = split_output(conditional, zt), split_output(other, zt)
    guided = rule(prediction, away, t)
    return jnp.concatenate([guided, v.astype(guided.dtype)], axis=-1) if v.shape[-1] else guided


def guide_by_classifier(
    denoise_fn: DenoiseFn,
    log_probability: LogProbability,
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    scale: Scale,
) -> DenoiseFn:
    """Move a prediction to what a classifier of noisy latents takes for the wanted class (4).

    The shift of epsilon is told in the words of the prediction type, in which predictions are linear; where nothing of
    z_0 is left (alpha = 0) only the noise is shifted.
    """

    def denoise(zt: Latent, t: Times) -> Output:
        gradient = jax.grad(lambda z: jnp.sum(log_probability(z, t)))(zt)
        alpha, sigma = levels_at(schedule, t)
        weight = jnp.asarray(scale, jnp.float32) * sigma
        d_epsilon = -per_sample(weight, zt) * gradient
        to_z0 = jnp.where(alpha > 0, weight * sigma / jnp.where(alpha > 0, alpha, 1.0), 0.0)
        d_z0 = per_sample(to_z0, zt) * gradient
        prediction, v = split_output(denoise_fn(zt, t), zt)
        shifted = prediction + target_for(prediction_type, d_z0, d_epsilon, alpha, sigma)
        return jnp.concatenate([shifted, v], axis=-1) if v.shape[-1] else shifted

    return denoise


def levels_at(schedule: NoiseSchedule, t: Times) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """alpha and sigma at training timesteps and at times between them, which lie on straight lines here."""
    steps = jnp.arange(schedule.num_train_timesteps, dtype=jnp.float32)
    at = t.astype(jnp.float32)
    return jnp.interp(at, steps, schedule.alpha), jnp.interp(at, steps, schedule.sigma)


def pair(conditional: Any, unconditional: Any) -> Any:
    """Interleave two equal trees of arrays `[b, ...]` into `[2b, ...]`: each conditional row before its unconditional.

    Neighbours rather than halves, because a batch that is sharded over devices then stays where it is.
    """
    return jax.tree.map(lambda c, u: jnp.stack([c, u], axis=1).reshape(-1, *c.shape[1:]), conditional, unconditional)
