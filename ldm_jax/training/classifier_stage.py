"""The stage that trains a classifier of noisy latents, in place of a denoiser.

(1) z ~ q(z | x), z0 = (z - mean) / std, t ~ uniform, zt = alpha[t] z0 + sigma[t] epsilon
(2) loss = -log p(class | zt, t)                                   Dhariwal and Nichol 2021, arXiv:2105.05233, section 4
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ldm_jax import rng, sharding
from ldm_jax.autoencoder.posterior import DiagonalGaussian
from ldm_jax.denoiser.classifier import NoisyClassifier, log_probability
from ldm_jax.diffusion.process import add_noise
from ldm_jax.model import LatentDiffusion, Params, make_classifier
from ldm_jax.nn.apply import apply
from ldm_jax.training.latents import LatentReader
from ldm_jax.training.loop import Stage
from ldm_jax.training.optimizers import make_optimizer
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import Batch, LossFn, Metrics, make_step
from ldm_jax.training.workspace import Workspace

CLASSIFIER_MEASURES = ("heldout_loss", "heldout_accuracy")
"""What is measured of a classifier."""


def make_classifier_loss(model: LatentDiffusion, classifier: NoisyClassifier) -> LossFn:
    """The loss (2) on batches with `moments` [b, h, w, 2c], `class_labels` [b] and `sample_index` [b]."""

    def loss_fn(
        params: Params, frozen: Params, batch: Batch, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        def keys(name: str) -> Key[Array, " b"]:
            return rng.sample_keys(rng.named_key(root, name), batch["sample_index"])

        z0 = model.normalize(frozen, DiagonalGaussian.from_moments(batch["moments"]).sample(keys("posterior")))
        t = rng.integers(keys("timestep"), model.schedule.num_train_timesteps)
        zt = add_noise(model.schedule, z0, rng.normal(keys("noise"), z0.shape[1:]), t)
        key = rng.named_key(root, "dropout", step)
        logits = apply(classifier, params["classifier"], zt, t, key=key, train=True)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["class_labels"])
        return -jnp.mean(log_probability(logits, batch["class_labels"])), {"accuracy": accuracy}

    return loss_fn


def heldout_scores(
    model: LatentDiffusion, classifier: NoisyClassifier, params: Params, batch: Batch, root: Key[Array, ""]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Loss (2), and whether the class is right, of each sample at a timestep that its index decides."""
    index = batch["sample_index"]
    t = (jnp.mod(index * 0.6180339887, 1.0) * model.schedule.num_train_timesteps).astype(jnp.int32)
    z0 = model.normalize(params, DiagonalGaussian.from_moments(batch["moments"]).mode())
    epsilon = rng.normal(rng.sample_keys(rng.named_key(root, "heldout_noise"), index), z0.shape[1:])
    logits = apply(classifier, params["classifier"], add_noise(model.schedule, z0, epsilon, t), t)
    is_right = jnp.argmax(logits, axis=-1) == batch["class_labels"]
    return -log_probability(logits, batch["class_labels"]), is_right.astype(jnp.float32)


def make_classifier_stage(work: Workspace, latents: LatentReader, frozen: Params) -> Stage:
    """The stage; `frozen` holds `autoencoder` and `latent`."""
    experiment, model = work.experiment, work.model
    classifier = make_classifier(experiment)
    optimizer = make_optimizer(experiment.optimizer, experiment.training.num_steps)
    gather = sharding.make_gather(work.mesh, jnp.float32)  # its last layer multiplies in float32
    scores_of = jax.jit(lambda params, batch: heldout_scores(model, classifier, params, batch, work.root))

    def init(root: Key[Array, ""], frozen: Params, initial: Params) -> TrainState:
        zt, t = jnp.zeros((1, *model.latent_shape)), jnp.zeros((1,), jnp.int32)
        params = classifier.init(rng.named_key(root, "init"), zt, t)["params"]
        trained, num_profiles = {"classifier": params, **initial}, len(experiment.training.ema_profiles)
        return TrainState.create(trained, frozen, optimizer, num_profiles)

    def evaluate(state: TrainState) -> dict[str, float]:
        rows: list[np.ndarray] = []
        for batch in latents.heldout_batches(experiment.training.batch_size):
            given = {name: batch[name] for name in ("moments", "sample_index", "class_labels")}
            scores = np.stack([sharding.to_host(score) for score in scores_of(state.model_params, given)])
            rows.append(scores[:, sharding.to_host(batch["valid"])])
        loss, accuracy = np.concatenate(rows, axis=-1).mean(axis=-1)
        return dict(zip(CLASSIFIER_MEASURES, (float(loss), float(accuracy)), strict=True))

    return Stage(
        name="classifier",
        training=experiment.training,
        frozen=frozen,
        initial={},
        init=init,
        step=make_step(make_classifier_loss(model, classifier), optimizer, experiment.training, gather=gather),
        batches=latents.train_batches,
        evaluate=evaluate,
        draw=lambda state, step: None,  # it draws by guiding another model
    )
