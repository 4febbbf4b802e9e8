"""The first stage's loss: the mean over independent samples of distance and regulariser."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, random_perceptual, tiny_experiment

from ldm_jax import rng
from ldm_jax.autoencoder.perceptual import Lpips
from ldm_jax.config import AutoencoderVQConfig, FirstStageConfig, PerceptualConfig
from ldm_jax.model import make_model
from ldm_jax.nn.apply import apply
from ldm_jax.training.autoencoder_step import _pull_back_to_last_layer, make_autoencoder_loss

ROOT = rng.root_key(0)


def experiment_of(kind: str, data_cache: Path) -> Any:
    experiment = tiny_experiment(data_cache)
    if kind == "kl":
        return experiment
    fields = dataclasses.asdict(experiment.first_stage.autoencoder)
    del fields["kl_weight"]
    autoencoder = AutoencoderVQConfig(**fields, codebook_size=16)
    return dataclasses.replace(experiment, first_stage=FirstStageConfig(autoencoder=autoencoder))


@pytest.fixture(scope="module", params=["kl", "vq"])
def trial(request: pytest.FixtureRequest, data_cache: Path) -> tuple[Any, Any, Any]:
    """Loss function, parameters and a batch of both autoencoders."""
    experiment = experiment_of(request.param, data_cache)
    model = make_model(experiment)
    loss_fn = jax.jit(make_autoencoder_loss(model, experiment.first_stage))
    image = np.random.default_rng(1).uniform(-1, 1, (8, *model.image_shape)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "sample_index": jnp.arange(8, dtype=jnp.int32)}
    return loss_fn, {"autoencoder": random_params(model)["autoencoder"]}, batch


def rows(batch: dict[str, jax.Array], chosen: list[int]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x[np.asarray(chosen)], batch)


def test_the_loss_of_a_batch_is_the_mean_over_its_halves(trial):
    loss_fn, params, batch = trial
    halves = [rows(batch, 2 * half) for half in ([0, 1, 2, 3], [4, 5, 6, 7])]  # twice each: one shape is compiled
    whole, first, second = (float(loss_fn(params, {}, b, ROOT, 0)[0]) for b in (batch, *halves))
    assert first != pytest.approx(second, rel=1e-3)
    assert whole == pytest.approx((first + second) / 2, rel=1e-5)


def test_a_sample_is_the_same_wherever_it_stands(trial):
    loss_fn, params, batch = trial
    turned = rows(batch, [7, 6, 5, 4, 3, 2, 1, 0])
    one, other = (float(loss_fn(params, {}, b, ROOT, step)[0]) for b, step in ((batch, 0), (turned, 9)))
    assert one == pytest.approx(other, rel=1e-5)


def test_the_parts_are_told_and_add_up(trial):
    loss_fn, params, batch = trial
    loss, metrics = loss_fn(params, {}, batch, ROOT, 0)
    assert float(loss) == pytest.approx(float(metrics["reconstruction"] + metrics["regulariser"]), rel=1e-5)
    assert {"kl", "posterior_std"} < set(metrics) or {"perplexity", "codebook_loss"} < set(metrics)
    assert all(np.ndim(value) == 0 and np.isfinite(value) for value in metrics.values())


def test_gradients_of_the_last_layer_are_in_float32_also_of_a_kernel_in_bfloat16():
    """As it is where it was gathered from several devices."""
    numbers = np.random.default_rng(0)
    x = jnp.asarray(numbers.normal(size=(2, 4, 4, 8)), jnp.bfloat16)
    kernel, gradient = (jnp.asarray(numbers.normal(size=s), jnp.bfloat16) for s in ((8, 3), (2, 4, 4, 3)))

    def reconstruct(autoencoder: Any) -> Any:
        taken = autoencoder["decoder"]["conv_out"]["kernel"].astype(jnp.bfloat16)
        return (x @ taken).astype(jnp.float32), None, {}

    def pulled(dtype: Any) -> jax.Array:
        autoencoder = {"decoder": {"conv_out": {"kernel": kernel.astype(dtype)}}}
        return _pull_back_to_last_layer(reconstruct, autoencoder)(gradient.astype(jnp.float32))

    whole, gathered = pulled(jnp.float32), pulled(jnp.bfloat16)
    assert gathered.dtype == jnp.float32
    np.testing.assert_array_equal(gathered, whole)


@pytest.mark.slow
def test_with_lpips_loss_and_gradient_are_those_of_the_plain_sum(data_cache: Path):
    """Written down without the shortcut by which LPIPS is gone through once."""
    experiment = tiny_experiment(data_cache)
    first = dataclasses.replace(
        experiment.first_stage, perceptual=PerceptualConfig(weight=0.7, net="alexnet"), learn_output_logvar=True
    )
    data = dataclasses.replace(experiment.data, image_size=32)
    model = make_model(dataclasses.replace(experiment, data=data, first_stage=first))
    image = np.random.default_rng(1).uniform(-1, 1, (2, *model.image_shape)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "sample_index": jnp.arange(2, dtype=jnp.int32)}
    params = {"autoencoder": random_params(model)["autoencoder"], "output_logvar": jnp.float32(0.3)}
    fixed = {"perceptual": random_perceptual("alexnet")}

    def plain(params: Any) -> Any:
        keys = rng.sample_keys(rng.named_key(ROOT, "autoencoder_posterior"), batch["sample_index"])
        decoded, regulariser, _ = apply(model.autoencoder, params["autoencoder"], batch["image"], keys, train=True)
        lpips = apply(Lpips("alexnet"), fixed["perceptual"], batch["image"], decoded)
        error = jnp.abs(batch["image"] - decoded).mean() + 0.7 * lpips.mean()
        logvar = params["output_logvar"]
        return error * jnp.exp(-logvar) + logvar + regulariser.mean(), lpips.mean()

    loss_fn = make_autoencoder_loss(model, first)
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, fixed, batch, ROOT, 0)
    (expected, lpips), expected_gradient = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    assert float(metrics["perceptual"]) == pytest.approx(float(lpips), rel=1e-5)
    assert float(lpips) > 0.01
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradient, expected_gradient)
