"""The loss of the first stage, for the autoencoder and for its discriminator in one.

(1) error = mean |x - decode(z)| + weight * LPIPS(x, decode(z)),  z ~ q(z | x)       LDM, appendix G; l1 or l2
(2) loss  = error / exp(logvar) + logvar + regulariser + hears * weight * adaptive * G(D(decode(z))) + D's own loss
                                                                                     LDM, eq. 25

One sum serves both networks: the terms of each are constants to the other (stop_gradient), so that one gradient and
one program move both. LDM's KL autoencoders sum (1) over the values of a picture where this takes the mean: all terms,
and with them the adaptive weight and its cap, are smaller by that number, and Adam does not notice.
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
from ldm_jax.autoencoder.likelihood import mean_error
from ldm_jax.autoencoder.perceptual import Lpips
from ldm_jax.config import DiscriminatorConfig, FirstStageConfig
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.nn.apply import apply
from ldm_jax.training.step import Batch, LossFn, Metrics

Pictures = Float[Array, "b *spatial c"]
Scalar = Float[Array, ""]
Reconstruct = Callable[[Params], tuple[Pictures, Float[Array, " b"], Metrics]]
"""Parameters of the autoencoder to reconstructions, the regulariser of each, and metrics."""

LAST_LAYER = ("decoder", "conv_out", "kernel")


def make_autoencoder_loss(model: LatentDiffusion, config: FirstStageConfig) -> LossFn:
    """The loss (2) on batches with `image` [b, h, w, c] in [-1, 1] and `sample_index` [b].

    Trained parameters are `autoencoder`, `discriminator` where there is one, and `output_logvar` where it is learned;
    fixed ones `perceptual` for LPIPS and `verdict_average` for the LeCam regulariser.
    """

    def loss_fn(
        params: Params, fixed: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Scalar, Metrics]:
        image, reconstruct = batch["image"], _make_reconstruct(model, batch, root, step)
        reconstruction, regulariser, metrics = reconstruct(params["autoencoder"])
        error, of_error, told = _seen_at(reconstruction, _make_error(model, config, fixed, image))
        logvar = params.get("output_logvar", jnp.zeros(()))
        loss = error / jnp.exp(logvar) + logvar + jnp.mean(regulariser)
        metrics = {**metrics, **told, "regulariser": jnp.mean(regulariser)}
        if "output_logvar" in params:
            metrics["output_logvar"] = logvar
        if config.judge is None:
            return loss, metrics
        judge, network = config.judge, Discriminator(config.judge, model.autoencoder.dtype)

        def weigh(of_verdict: Pictures) -> tuple[Scalar, Metrics]:
            pull_back = _pull_back_to_last_layer(reconstruct, jax.lax.stop_gradient(params["autoencoder"]))
            nearer, verdict = (jnp.linalg.norm(pull_back(x).reshape(-1)) for x in (of_error, of_verdict))
            nearer = nearer / jnp.exp(jax.lax.stop_gradient(logvar))
            weight = adaptive_weight(nearer, verdict, judge.max_adaptive_weight)
            return weight, {"adaptive_weight": weight, "generator_gradient": verdict}

        verdict, heard = _generator_term(judge, network, params["discriminator"], reconstruction, step, weigh)
        own, learned = _discriminator_term(judge, network, params["discriminator"], fixed, image, reconstruction)
        return loss + verdict + discriminator_learns(judge, step) * own, {**metrics, **heard, **learned}

    return loss_fn


def _make_reconstruct(model: LatentDiffusion, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]) -> Reconstruct:
    keys = rng.sample_keys(rng.named_key(root, "autoencoder_posterior"), batch["sample_index"])
    dropout_key = rng.named_key(root, "autoencoder_dropout", step)
    return lambda autoencoder: apply(model.autoencoder, autoencoder, batch["image"], keys, key=dropout_key, train=True)


def _make_error(
    model: LatentDiffusion, config: FirstStageConfig, fixed: Params, image: Pictures
) -> Callable[[Pictures], tuple[Scalar, Metrics]]:
    """The error (1) of reconstructions of `image`."""

    def error(reconstruction: Pictures) -> tuple[Scalar, Metrics]:
        distance = jnp.mean(mean_error(config.reconstruction_loss, image, reconstruction))
        metrics = {"reconstruction": distance}
        if (weight := config.perceptual.weight) > 0:
            lpips = Lpips(config.perceptual.net, model.autoencoder.dtype)
            metrics["perceptual"] = jnp.mean(apply(lpips, fixed["perceptual"], image, reconstruction))
            distance += weight * metrics["perceptual"]
        return distance, metrics

    return error


def _seen_at(
    reconstruction: Pictures, loss: Callable[[Pictures], tuple[Scalar, Metrics]]
) -> tuple[Scalar, Pictures, Metrics]:
    """A loss of reconstructions, its gradient with respect to them, and its metrics.

    Whoever differentiates the loss gets that same gradient: LPIPS and the discriminator are gone through once, for the
    adaptive weight and for the step.
    """
    here = jax.lax.stop_gradient(reconstruction)
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(here)
    return value + jnp.sum(gradient * (reconstruction - here)), gradient, metrics


def _generator_term(
    config: DiscriminatorConfig,
    network: Discriminator,
    params: Params,
    reconstruction: Pictures,
    step: Int[Array, ""],
    weigh: Callable[[Pictures], tuple[Scalar, Metrics]],
) -> tuple[Scalar, Metrics]:
    """The verdict in (2) that the autoencoder hears; `weigh` makes the adaptive weight of its gradient, and metrics."""
    constant = jax.lax.stop_gradient(params)
    loss, gradient, _ = _seen_at(
        reconstruction, lambda x: (generator_loss(config.loss, apply(network, constant, x)), {})
    )
    adaptive, told = weigh(gradient) if config.adaptive else (jnp.ones(()), {})
    weighed = generator_hears(config, step) * config.weight * adaptive * loss
    return weighed, {"generator_loss": loss, **told}


def _discriminator_term(
    config: DiscriminatorConfig,
    network: Discriminator,
    params: Params,
    fixed: Params,
    image: Pictures,
    reconstruction: Pictures,
) -> tuple[Scalar, Metrics]:
    """The discriminator's own loss in (2), and what is told of its verdicts."""
    real, fake = apply(network, params, image), apply(network, params, jax.lax.stop_gradient(reconstruction))
    loss = discriminator_loss(config.loss, real, fake)
    if config.r1_weight > 0:
        loss += config.r1_weight * r1_penalty(lambda x: apply(network, params, x), image)
    metrics = {
        "verdict_real": jnp.mean(real),
        "verdict_fake": jnp.mean(fake),
        "discriminator_accuracy": 0.5 * (jnp.mean(real > 0) + jnp.mean(fake < 0)),
    }
    if config.lecam_weight > 0:
        average = fixed["verdict_average"]
        loss += config.lecam_weight * lecam(real, fake, average["real"], average["fake"])
    return loss, metrics | {"discriminator_loss": loss}


def _pull_back_to_last_layer(reconstruct: Reconstruct, autoencoder: Params) -> Callable[[Pictures], Array]:
    """From gradients with respect to reconstructions to those with respect to the kernel of the decoder's last layer.

    The reconstruction is that of the loss itself, which the compiler computes once. They are in float32, whose norm has
    all its bits, also where the kernel was gathered from several devices in fewer.
    """
    kernel: Any = autoencoder
    for name in LAST_LAYER:
        kernel = kernel[name]
    kernel = kernel.astype(jnp.float32)
    _, pull_back = jax.vjp(lambda kernel: reconstruct(_with(autoencoder, LAST_LAYER, kernel))[0], kernel)
    return lambda gradient: pull_back(gradient)[0]


def _with(tree: Params, path: tuple[str, ...], leaf: Array) -> Params:
    """The tree with one leaf replaced."""
    first, *rest = path
    return {**tree, first: _with(tree[first], tuple(rest), leaf) if rest else leaf}
