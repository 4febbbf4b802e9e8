"""Prediction types: what the denoiser's output means, and how one meaning is turned into another.

(1) z_t = alpha z_0 + sigma epsilon
(2) v = alpha epsilon - sigma z_0                                    Salimans and Ho 2022, arXiv:2202.00512, section 4
(3) epsilon given: z_0 = (z_t - sigma epsilon) / alpha               from (1)
(4) v given:       z_0 = alpha z_t - sigma v,  epsilon = alpha v + sigma z_t     from (1), (2), alpha^2 + sigma^2 = 1
(5) z_0 given:     epsilon = (z_t - alpha z_0) / sigma               from (1)
(6) flow = epsilon - z_0                                             Liu et al. 2022, arXiv:2209.03003, eq. 1, with
    time running from data to noise; the velocity of the straight path alpha = 1 - sigma (Esser et al. 2024, 2403.03206)
(7) flow given:    z_0 = (z_t - sigma flow) / (alpha + sigma),  epsilon = (z_t + alpha flow) / (alpha + sigma)
                                                                     from (1), (6); the divisor is 1 if straight

At a timestep without signal (alpha = 0) v, x0 and flow stay exact; epsilon says nothing about z_0 there.
alpha and sigma are scalars or one number for each sample.
"""

from collections.abc import Callable
from typing import TypeAlias, assert_never

from jaxtyping import Array, Float, Num

from ldm_jax.config import PredictionType
from ldm_jax.diffusion.schedule import PerSample, per_sample

DenoiseFn: TypeAlias = Callable[[Float[Array, "b *spatial c"], Num[Array, " b"]], Float[Array, "b *spatial c"]]
"""`denoise_fn(z_t, t) -> prediction`, with a timestep for each sample; behind its channels those of a learned variance,
if there is one (`learned_variance.py`)."""


def target_for(
    prediction_type: PredictionType,
    z0: Float[Array, "b *spatial c"],
    epsilon: Float[Array, "b *spatial c"],
    alpha: PerSample,
    sigma: PerSample,
) -> Float[Array, "b *spatial c"]:
    """What a perfect prediction of this type is (2), (6)."""
    match prediction_type:
        case "epsilon":
            return epsilon
        case "x0":
            return z0
        case "v":
            return per_sample(alpha, z0) * epsilon - per_sample(sigma, z0) * z0
        case "flow":
            return epsilon - z0
        case _:
            assert_never(prediction_type)


def to_x0(
    prediction_type: PredictionType,
    prediction: Float[Array, "b *spatial c"],
    zt: Float[Array, "b *spatial c"],
    alpha: PerSample,
    sigma: PerSample,
) -> Float[Array, "b *spatial c"]:
    """The clean latent that a prediction implies (3), (4), (7)."""
    match prediction_type:
        case "epsilon":
            return (zt - per_sample(sigma, zt) * prediction) / per_sample(alpha, zt)
        case "x0":
            return prediction
        case "v":
            return per_sample(alpha, zt) * zt - per_sample(sigma, zt) * prediction
        case "flow":
            return (zt - per_sample(sigma, zt) * prediction) / per_sample(alpha + sigma, zt)
        case _:
            assert_never(prediction_type)


def to_epsilon(
    prediction_type: PredictionType,
    prediction: Float[Array, "b *spatial c"],
    zt: Float[Array, "b *spatial c"],
    alpha: PerSample,
    sigma: PerSample,
) -> Float[Array, "b *spatial c"]:
    """The noise that a prediction implies (4), (5), (7)."""
    match prediction_type:
        case "epsilon":
            return prediction
        case "x0":
            return (zt - per_sample(alpha, zt) * prediction) / per_sample(sigma, zt)
        case "v":
            return per_sample(alpha, zt) * prediction + per_sample(sigma, zt) * zt
        case "flow":
            return (zt + per_sample(alpha, zt) * prediction) / per_sample(alpha + sigma, zt)
        case _:
            assert_never(prediction_type)


def convert(
    prediction: Float[Array, "b *spatial c"],
    source: PredictionType,
    target: PredictionType,
    zt: Float[Array, "b *spatial c"],
    alpha: PerSample,
    sigma: PerSample,
) -> Float[Array, "b *spatial c"]:
    """The same prediction in the words of another type; exact at alpha = 0 unless `source` is epsilon."""
    if source == target:
        return prediction
    x0 = to_x0(source, prediction, zt, alpha, sigma)
    epsilon = to_epsilon(source, prediction, zt, alpha, sigma)
    return target_for(target, x0, epsilon, alpha, sigma)
