"""The loss of the first stage, for the autoencoder and for its discriminator in one.

(1) error = mean |x - decode(z)|,  z ~ q(z | x)                                  LDM, appendix G; l1 or l2
(2) loss  = error / exp(logvar) + logvar + regulariser + hears * weight * adaptive * G(D(decode(z))) + D's own loss
                                                                                 LDM, eq. 25

One sum serves both networks: the terms of each are constants to the other (stop_gradient), so that one gradient and
one program move both. LDM sums (1) over the values of a picture where this takes the mean: all terms, and with them
the adaptive weight and its cap, are smaller by that number, and Adam does not notice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ldm_jax import rng
from ldm_jax.autoencoder.adversarial import (
    adaptive_weight,
    discriminator_learns,
    discriminator_loss,
    generator_hears,
    generator_loss,
    lecam,
    r1_penalty,
)
from ldm_jax.autoencoder.discriminator import Discriminator
from ldm_jax.config import DiscriminatorConfig, FirstStageConfig
from ldm_jax.model import LatentDiffusion, Params, apply
from ldm_jax.training.step import Batch, LossFn, Metrics

Pictures = Float[Array, "b *spatial c"]

LAST_LAYER = ("decoder", "conv_out", "kernel")


def make_autoencoder_loss(model: LatentDiffusion, config: FirstStageConfig) -> LossFn:
    """The loss (2) on batches with `image` [b, h, w, c] in [-1, 1] and `sample_index` [b].

    Trained parameters are `autoencoder`, `discriminator` where there is one, and `output_logvar` where it is learned;
    frozen ones `verdict_average` for the LeCam regulariser.
    """

    def loss_fn(
        params: Params, frozen: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        image = batch["image"]
        keys = rng.sample_keys(rng.named_key(root, "autoencoder_posterior"), batch["sample_index"])
        dropout_key = rng.named_key(root, "autoencoder_dropout", step)

        def reconstruct(autoencoder: Params) -> tuple[Pictures, Float[Array, " b"], Metrics]:
            return apply(model.autoencoder, autoencoder, image, keys, key=dropout_key, train=True)

        def error_of(reconstruction: Pictures) -> Float[Array, " b"]:
            return reconstruction_distance(image, reconstruction, config.reconstruction_loss)

        reconstruction, regulariser, metrics = reconstruct(params["autoencoder"])
        error = error_of(reconstruction)
        logvar = params.get("output_logvar", jnp.zeros(()))
        loss = jnp.mean(error) / jnp.exp(logvar) + logvar + jnp.mean(regulariser)
        metrics = {**metrics, "reconstruction": jnp.mean(error), "regulariser": jnp.mean(regulariser)}
        if "output_logvar" in params:
            metrics["output_logvar"] = logvar
        if config.discriminator is None:
            return loss, metrics
        fixed = jax.lax.stop_gradient(logvar)

        def last_layer_gradients(adversarial: Callable[[Pictures], Float[Array, ""]]) -> tuple[Array, Array]:
            return _last_layer_gradients(
                lambda autoencoder: reconstruct(autoencoder)[0],
                jax.lax.stop_gradient(params["autoencoder"]),
                lambda x: jnp.mean(error_of(x)) / jnp.exp(fixed),
                adversarial,
            )

        more, verdicts = _adversarial_terms(
            config.discriminator,
            model,
            params["discriminator"],
            frozen,
            image,
            reconstruction,
            step,
            last_layer_gradients,
        )
        return loss + more, {**metrics, **verdicts}

    return loss_fn


def _adversarial_terms(
    config: DiscriminatorConfig,
    model: LatentDiffusion,
    params: Params,
    frozen: Params,
    image: Pictures,
    reconstruction: Pictures,
    step: Int[Array, ""],
    last_layer_gradients: Callable[[Callable[[Pictures], Float[Array, ""]]], tuple[Array, Array]],
) -> tuple[Float[Array, ""], Metrics]:
    """The last two terms of (2), and what is told of them."""
    judge = Discriminator(config, model.autoencoder.dtype)
    constant = jax.lax.stop_gradient(params)

    def adversarial(x: Pictures) -> Float[Array, ""]:
        return generator_loss(config.loss, apply(judge, constant, x))

    hears = generator_hears(config, step)
    adaptive = jnp.ones(())
    if config.adaptive:
        adaptive = adaptive_weight(*last_layer_gradients(adversarial), config.max_adaptive_weight)
    generator = adversarial(reconstruction)

    real, fake = apply(judge, params, image), apply(judge, params, jax.lax.stop_gradient(reconstruction))
    own = discriminator_loss(config.loss, real, fake)
    if config.r1_weight > 0:
        own += config.r1_weight * r1_penalty(lambda x: apply(judge, params, x), image)
    metrics = {
        "generator_loss": generator,
        "discriminator_loss": own,
        "adaptive_weight": adaptive,
        "verdict_real": jnp.mean(real),
        "verdict_fake": jnp.mean(fake),
        "discriminator_accuracy": 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
    }
    if config.lecam_weight > 0:
        average = frozen["verdict_average"]
        own += config.lecam_weight * lecam(real, fake, average["real"], average["fake"])
    loss = hears * config.weight * adaptive * generator + discriminator_learns(config, step) * own
    return loss, metrics


def _last_layer_gradients(
    reconstruct: Callable[[Params], Pictures],
    autoencoder: Params,
    error: Callable[[Pictures], Float[Array, ""]],
    adversarial: Callable[[Pictures], Float[Array, ""]],
) -> tuple[Array, Array]:
    """Gradients of both losses with respect to the kernel of the decoder's last layer.

    The reconstruction is that of the loss itself, which the compiler computes once.
    """

    def from_kernel(kernel: Array) -> Pictures:
        return reconstruct(_with(autoencoder, LAST_LAYER, kernel))

    kernel: Any = autoencoder
    for name in LAST_LAYER:
        kernel = kernel[name]
    reconstruction, pull_back = jax.vjp(from_kernel, kernel)
    of_error, of_adversarial = (jax.grad(loss)(reconstruction) for loss in (error, adversarial))
    return pull_back(of_error)[0], pull_back(of_adversarial)[0]


def _with(tree: Params, path: tuple[str, ...], leaf: Array) -> Params:
    """The tree with one leaf replaced."""
    first, *rest = path
    return {**tree, first: _with(tree[first], tuple(rest), leaf) if rest else leaf}


def reconstruction_distance(image: Pictures, reconstruction: Pictures, kind: str) -> Float[Array, " b"]:
    """Mean absolute (`l1`) or squared (`l2`) difference of each picture."""
    difference = image - reconstruction
    error = jnp.abs(difference) if kind == "l1" else jnp.square(difference)
    return jnp.mean(error, axis=tuple(range(1, error.ndim)))
