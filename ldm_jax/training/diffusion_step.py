"""The loss of the second stage: noise-prediction on latents.

(1) z ~ q(z | x), z0 = (z - mean) / std, t ~ uniform (or by importance), zt = alpha[t] z0 + sigma[t] epsilon
(2) loss = E weight(t) |prediction(zt, t, condition) - target|    LDM, eq. 2 and 3
    with the condition replaced by the empty one for a share cond_drop_prob of the samples

Every draw has a key of its own for each sample, made from the sample's position in the data (ldm_jax.rng).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ldm_jax import rng
from ldm_jax.autoencoder.posterior import DiagonalGaussian
from ldm_jax.conditioning.conditions import Inputs, drop_inputs
from ldm_jax.config import DiffusionConfig
from ldm_jax.data.latent_records import EMBEDDED
from ldm_jax.diffusion.loss import diffusion_loss
from ldm_jax.diffusion.timesteps import LossHistory, Visits, draw_timesteps, visits_of
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.training.step import Batch, Follow, LossFn, Metrics


def condition_inputs(model: LatentDiffusion, batch: Batch) -> Inputs:
    """What the model's conditions are made of, from a batch; sizes that it lacks are those of the training picture."""
    null = model.null_inputs(len(batch["sample_index"]))
    embedded = {name: batch[name] for name in EMBEDDED if name in batch}
    if embedded:  # in place of the tokens
        null = {name: value for name, value in null.items() if name not in ("tokens", "tokens_2")} | embedded
    return {name: batch.get(name, null[name]) if name == "sizes" else batch[name] for name in null}


def _null_inputs(model: LatentDiffusion, params: Params, inputs: Inputs, batch: int) -> Inputs:
    """The empty condition in the form of `inputs`."""
    null = model.conditioner.null_inputs(batch)
    if "context" in inputs:
        empty = model.embed_texts(params, model.null_inputs(1))
        null |= {name: jnp.broadcast_to(value, inputs[name].shape) for name, value in empty.items()}
    return null


def make_diffusion_loss(model: LatentDiffusion, config: DiffusionConfig) -> LossFn:
    """The loss (2) on batches with `moments` [b, h, w, 2c], `sample_index` [b] and the conditioner's inputs.

    Where timesteps are drawn by importance, the frozen parameters hold `timestep_history`, which `make_history_follow`
    moves by the metrics.
    """

    def loss_fn(
        params: Params, frozen: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        def keys(name: str) -> Key[Array, " b"]:
            return rng.sample_keys(rng.named_key(root, name), batch["sample_index"])

        posterior = DiagonalGaussian.from_moments(batch["moments"])
        everything = {**frozen, **params}
        z0 = model.normalize(everything, posterior.sample(keys("posterior")))
        t, weight = _timesteps(config, frozen, keys("timestep"))
        epsilon = rng.normal(keys("noise"), z0.shape[1:])
        drop = rng.uniform(keys("condition_drop")) < config.cond_drop_prob
        inputs = condition_inputs(model, batch)
        inputs = drop_inputs(inputs, _null_inputs(model, everything, inputs, len(t)), drop)
        loss = _loss(model, config, everything, z0, epsilon, t, inputs, rng.named_key(root, "dropout", step))
        if weight is None:
            return jnp.mean(loss), {}
        visits = visits_of(t, loss, config.schedule.num_train_timesteps)
        return jnp.mean(weight * loss), {f"timestep_{name}": value for name, value in visits._asdict().items()}

    return loss_fn


def _timesteps(
    config: DiffusionConfig, frozen: Params, keys: Key[Array, " b"]
) -> tuple[Int[Array, " b"], Float[Array, " b"] | None]:
    """Timesteps of the samples, and the weights of their losses where they are not drawn alike."""
    if config.timesteps == "uniform":
        return rng.integers(keys, config.schedule.num_train_timesteps), None
    return draw_timesteps(LossHistory(**frozen["timestep_history"]).probabilities(), rng.uniform(keys))


def init_history(config: DiffusionConfig) -> Params:
    """What training keeps of the losses before the first step: `{"timestep_history": ...}` where it keeps any."""
    return {} if config.timesteps == "uniform" else {"timestep_history": LossHistory.empty(config)._asdict()}


def make_history_follow(config: DiffusionConfig) -> Follow:
    """What moves the history by what a step has found."""

    def follow(
        params: Params, frozen: Params, metrics: Metrics, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Params, Params]:
        del root, step  # nothing is drawn
        if config.timesteps == "uniform":
            return params, frozen
        visits = Visits(metrics["timestep_squares"], metrics["timestep_counts"])
        history = LossHistory(**frozen["timestep_history"]).updated(visits)
        return params, {**frozen, "timestep_history": history._asdict()}

    return follow


def _loss(
    model: LatentDiffusion,
    config: DiffusionConfig,
    params: Params,
    z0: Float[Array, "b *latent c"],
    epsilon: Float[Array, "b *latent c"],
    t: Int[Array, " b"],
    inputs: Inputs,
    dropout_key: Key[Array, ""] | None,
) -> Float[Array, " b"]:
    train = dropout_key is not None
    conditions = model.condition(params, inputs, train=train, dropout_key=dropout_key)

    def denoise_fn(zt: Float[Array, "b *latent c"], t: Int[Array, " b"]) -> Float[Array, "b *latent o"]:
        return model.denoise(params, zt, t, conditions, train=train, dropout_key=dropout_key)

    return diffusion_loss(denoise_fn, model.schedule, config, z0, epsilon, t)


def heldout_loss(
    model: LatentDiffusion, config: DiffusionConfig, params: Params, batch: Batch, root: Key[Array, ""]
) -> Float[Array, " b"]:
    """Loss of each sample at timesteps and noise that depend on its index alone, so that evaluations compare.

    Timesteps walk through the whole range by the golden ratio: every subset of neighbouring samples covers it evenly.
    """
    index = batch["sample_index"]
    position = jnp.mod(index * 0.6180339887, 1.0)
    t = (position * model.schedule.num_train_timesteps).astype(jnp.int32)
    z0 = model.normalize(params, DiagonalGaussian.from_moments(batch["moments"]).mode())
    epsilon = rng.normal(rng.sample_keys(rng.named_key(root, "heldout_noise"), index), z0.shape[1:])
    return _loss(model, config, params, z0, epsilon, t, condition_inputs(model, batch), None)
