"""The loss of the first stage.

(1) loss = mean |x - decode(z)| + regulariser,  z ~ q(z | x)    LDM, eq. 25 without the adversarial terms; l1 or l2
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ldm_jax import rng
from ldm_jax.config import FirstStageConfig
from ldm_jax.model import LatentDiffusion, Params, apply
from ldm_jax.training.step import Batch, LossFn, Metrics


def make_autoencoder_loss(model: LatentDiffusion, config: FirstStageConfig) -> LossFn:
    """The loss (1) on batches with `image` [b, h, w, c] in [-1, 1] and `sample_index` [b]."""

    def loss_fn(
        params: Params, frozen: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen  # the first stage trains all it has
        keys = rng.sample_keys(rng.named_key(root, "autoencoder_posterior"), batch["sample_index"])
        dropout_key = rng.named_key(root, "autoencoder_dropout", step)
        output = apply(model.autoencoder, params["autoencoder"], batch["image"], keys, key=dropout_key, train=True)
        reconstruction, regulariser, metrics = output
        distance = reconstruction_distance(batch["image"], reconstruction, config.reconstruction_loss)
        metrics = {**metrics, "reconstruction": jnp.mean(distance), "regulariser": jnp.mean(regulariser)}
        return jnp.mean(distance + regulariser), metrics

    return loss_fn


def reconstruction_distance(
    image: Float[Array, "b *spatial c"], reconstruction: Float[Array, "b *spatial c"], kind: str
) -> Float[Array, " b"]:
    """Mean absolute (`l1`) or squared (`l2`) difference of each picture."""
    difference = image - reconstruction
    error = jnp.abs(difference) if kind == "l1" else jnp.square(difference)
    return jnp.mean(error, axis=tuple(range(1, error.ndim)))
