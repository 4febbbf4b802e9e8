"""What the first stage trains, and the averages that it keeps beside that from step to step.

The averages move with the metrics of each step. They are held in `TrainState.frozen`, out of the optimizer's reach:
`code_average` of a codebook that follows by averages (ldm_jax.autoencoder.code_averages), and `verdict_average` of the
LeCam regulariser (ldm_jax.autoencoder.adversarial).
"""

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from ldm_jax import rng
from ldm_jax.autoencoder.code_averages import CodeAverages, follow, restart
from ldm_jax.autoencoder.discriminator import Discriminator
from ldm_jax.autoencoder.perceptual_weights import abstract_perceptual
from ldm_jax.config import FirstStageConfig
from ldm_jax.model import LatentDiffusion, Params
from ldm_jax.training.step import Follow, Metrics


def init_first_stage(model: LatentDiffusion, config: FirstStageConfig, key: Key[Array, ""]) -> Params:
    """Fresh parameters of all that the first stage trains."""
    params = model.init_autoencoder(key)
    if config.judge is not None:
        image = jnp.zeros((1, *model.image_shape))
        judge = Discriminator(config.judge)
        params["discriminator"] = judge.init(rng.named_key(key, "discriminator"), image)["params"]
    if config.learn_output_logvar:
        params["output_logvar"] = jnp.zeros(())
    return params


def init_averages(config: FirstStageConfig, params: Params) -> Params:
    """The averages before the first step."""
    averages: Params = {}
    if config.averaged_codebook is not None:
        averages["code_average"] = CodeAverages.of_codes(params["autoencoder"]["codebook"]["embedding"])._asdict()
    if config.judge is not None and config.judge.lecam_weight > 0:
        averages["verdict_average"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
    return averages


def abstract_constants(config: FirstStageConfig) -> Params:
    """Shapes of what the loss measures with: `perceptual`, if LPIPS has a weight."""
    return {} if config.perceptual.weight == 0 else {"perceptual": abstract_perceptual(config.perceptual.net)}


def make_follow(config: FirstStageConfig) -> Follow:
    """What moves the averages, and the codes with them, behind each optimizer step."""

    def follow_metrics(
        params: Params, frozen: Params, metrics: Metrics, root: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Params, Params]:
        autoencoder = config.averaged_codebook
        if autoencoder is not None:
            averages = CodeAverages(**frozen["code_average"])
            averages = follow(averages, metrics["code_share"], metrics["code_total"], autoencoder.code_decay)
            if autoencoder.restart_usage > 0:
                averages = restart(averages, autoencoder.restart_usage, rng.named_key(root, "code_restart", step))
            codebook = {"codebook": {"embedding": averages.codes}}
            params = {**params, "autoencoder": {**params["autoencoder"], **codebook}}
            frozen = {**frozen, "code_average": averages._asdict()}
        if "verdict_average" in frozen and config.judge is not None:
            decay, now = config.judge.lecam_decay, {"real": "verdict_real", "fake": "verdict_fake"}
            old = frozen["verdict_average"]
            average = {name: decay * old[name] + (1 - decay) * metrics[metric] for name, metric in now.items()}
            frozen = {**frozen, "verdict_average": average}
        return params, frozen

    return follow_metrics
