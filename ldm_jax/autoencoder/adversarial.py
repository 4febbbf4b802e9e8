"""What discriminator and autoencoder make of verdicts: pure functions of the discriminator's outputs.

real, fake: verdicts on pictures and on reconstructions

(1) hinge            D: 1/2 mean(relu(1 - real)) + 1/2 mean(relu(1 + fake))       G: -mean(fake)
                     Lim and Ye 2017, arXiv:1705.02894
(2) vanilla          D: 1/2 mean(softplus(-real)) + 1/2 mean(softplus(fake))      G: -mean(fake), as taming-transformers
(3) non_saturating   D: as (2)                                                    G: mean(softplus(-fake))
                     Goodfellow et al. 2014, arXiv:1406.2661, section 3
(4) adaptive weight = |grad of reconstruction| / (|grad of G| + 1e-4), at the decoder's last layer, capped
                     Esser et al. 2021, arXiv:2012.09841, eq. 7; the floor of 1e-4 and the cap as in their code
(5) R1 = 1/2 mean |grad of the sum of real at the pictures|^2
                     Mescheder et al. 2018, arXiv:1801.04406, eq. 9
(6) LeCam = mean(relu(real - average of fake)^2) + mean(relu(average of real - fake)^2)
                     Tseng et al. 2021, arXiv:2104.03310, eq. 5, whose squares pull verdicts from both sides; the relu
                     is that of their code (google/lecam-gan, biggan_cifar/losses.py)
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ldm_jax.config import DiscriminatorConfig

AdversarialKind = Literal["hinge", "vanilla", "non_saturating"]
Verdicts = Float[Array, "b p q 1"]

GRADIENT_FLOOR = 1e-4
"""Added to the norm of G's gradient in (4): the adaptive weight does not make up for a gradient below it."""


def discriminator_loss(kind: AdversarialKind, real: Verdicts, fake: Verdicts) -> Float[Array, ""]:
    """What the discriminator minimises (1)-(3)."""
    if kind == "hinge":
        return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)))
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


def generator_loss(kind: AdversarialKind, fake: Verdicts) -> Float[Array, ""]:
    """What the autoencoder minimises (1)-(3)."""
    return jnp.mean(jax.nn.softplus(-fake)) if kind == "non_saturating" else -jnp.mean(fake)


def adaptive_weight(reconstruction: Float[Array, ""], adversarial: Float[Array, ""], cap: float) -> Float[Array, ""]:
    """The weight (4) from the norms of both gradients at the decoder's last layer.

    Whatever the cap, it is at most the norm of the reconstruction's over GRADIENT_FLOOR.
    """
    return jax.lax.stop_gradient(jnp.clip(reconstruction / (adversarial + GRADIENT_FLOOR), 0.0, cap))


def r1_penalty(
    judge: Callable[[Float[Array, "b h w c"]], Verdicts], image: Float[Array, "b h w c"]
) -> Float[Array, ""]:
    """The squared gradient of verdicts at real pictures (5)."""
    gradient = jax.grad(lambda x: jnp.sum(judge(x)))(image)
    return 0.5 * jnp.mean(jnp.sum(jnp.square(gradient), axis=(1, 2, 3)))


def lecam(
    real: Verdicts, fake: Verdicts, average_real: Float[Array, ""], average_fake: Float[Array, ""]
) -> Float[Array, ""]:
    """The distance of verdicts from the other side's moving average (6)."""
    above = jnp.mean(jnp.square(jax.nn.relu(real - average_fake)))
    return above + jnp.mean(jnp.square(jax.nn.relu(average_real - fake)))


def discriminator_learns(config: DiscriminatorConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """1 from the discriminator's first step on, 0 before."""
    return (step >= config.start_step).astype(jnp.float32)


def generator_hears(config: DiscriminatorConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """The share of its weight with which a verdict counts: 0 while the discriminator warms up, then rising to 1."""
    since = step - (config.start_step + config.warmup_steps)
    risen = (since + 1) / max(config.ramp_steps, 1)
    return jnp.where(since >= 0, jnp.clip(risen, 0.0, 1.0), 0.0)
