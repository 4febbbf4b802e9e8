"""The second stage's loss: what is drawn for a sample depends on its index alone, and the batch is a mean."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_experiment

from ldm_jax import rng, sharding
from ldm_jax.config import DiffusionConfig, MeshConfig
from ldm_jax.model import LatentDiffusion, Params, make_model
from ldm_jax.training import diffusion_step
from ldm_jax.training.diffusion_step import condition_inputs, heldout_loss, make_diffusion_loss

ROOT = rng.root_key(0)
BATCH = 8
CONFIG = DiffusionConfig(prediction_type="v", cond_drop_prob=0.3)
FROZEN = ("autoencoder", "latent")


@pytest.fixture(scope="module")
def model(data_cache: Path) -> LatentDiffusion:
    return make_model(tiny_experiment(data_cache))


@pytest.fixture(scope="module")
def params(model: LatentDiffusion) -> tuple[Params, Params]:
    """Trained and frozen parameters."""
    every = random_params(model)
    frozen = {name: every.pop(name) for name in FROZEN}
    return every, frozen


@pytest.fixture(scope="module")
def batch(model: LatentDiffusion) -> dict[str, jax.Array]:
    return make_batch(model)


@pytest.fixture(scope="module")
def loss_and_gradient(model: LatentDiffusion) -> Any:
    return jax.jit(jax.value_and_grad(make_diffusion_loss(model, CONFIG), has_aux=True))


def make_batch(model: LatentDiffusion, size: int = BATCH) -> dict[str, jax.Array]:
    numbers = np.random.default_rng(2)
    moments = numbers.normal(size=(size, *model.latent_shape[:-1], 2 * model.latent_shape[-1]))
    tokens = numbers.integers(3, 300, (size, model.conditioner.null_inputs(1)["tokens"].shape[1]))
    index = np.arange(100, 100 + size)
    arrays = {"moments": moments.astype(np.float32), "tokens": tokens, "sample_index": index}
    return {name: jnp.asarray(a, jnp.float32 if name == "moments" else jnp.int32) for name, a in arrays.items()}


def rows(batch: dict[str, jax.Array], chosen: list[int]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x[np.asarray(chosen)], batch)


def test_the_loss_and_gradient_of_a_batch_are_the_means_over_its_halves(loss_and_gradient, params, batch):
    halves = [rows(batch, 2 * half) for half in ([0, 1, 2, 3], [4, 5, 6, 7])]  # twice each: one shape is compiled
    results = [unpack(loss_and_gradient(*params, b, ROOT, 0)) for b in (batch, *halves)]
    (whole, gradient), (first, gradient_1), (second, gradient_2) = results
    assert first != pytest.approx(second, rel=1e-3)
    assert whole == pytest.approx((first + second) / 2, rel=1e-5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, gradient_1, gradient_2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, mean)


def unpack(result: Any) -> tuple[float, Params]:
    (loss, _), gradient = result
    return float(loss), gradient


def test_eight_devices_compute_what_one_does(loss_and_gradient, params, batch):
    one, gradient_1 = unpack(loss_and_gradient(*params, batch, ROOT, 0))
    mesh = sharding.make_mesh(MeshConfig())
    trained, frozen = (jax.device_put(p, sharding.replicated(mesh)) for p in params)
    split = sharding.put_batch(mesh, {name: np.asarray(rows) for name, rows in batch.items()})
    eight, gradient_8 = unpack(loss_and_gradient(trained, frozen, split, ROOT, 0))
    assert one == pytest.approx(eight, rel=1e-5)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient_1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient_1, gradient_8)


def test_every_parameter_learns(loss_and_gradient, params, batch):
    gradient = unpack(loss_and_gradient(*params, batch, ROOT, 0))[1]
    norms = {jax.tree_util.keystr(path): float(jnp.abs(g).max()) for path, g in jax.tree.leaves_with_path(gradient)}
    assert {name: norm for name, norm in norms.items() if not norm > 0} == {}


# What the loss draws, seen without running the denoiser.


def drawn(
    monkeypatch: pytest.MonkeyPatch, model: LatentDiffusion, frozen: Params, batch: Any, **arguments: Any
) -> dict[str, np.ndarray]:
    """z0, epsilon, t and tokens that a batch comes to."""
    seen: dict[str, np.ndarray] = {}

    def spy(_denoise_fn: Any, _schedule: Any, _config: Any, z0: jax.Array, epsilon: jax.Array, t: jax.Array) -> Any:
        seen.update(z0=np.asarray(z0), epsilon=np.asarray(epsilon), t=np.asarray(t))
        return jnp.zeros(len(t))

    def condition(self: Any, params: Any, inputs: Any, **_: Any) -> None:
        seen.update(tokens=np.asarray(inputs["tokens"]))

    monkeypatch.setattr(diffusion_step, "diffusion_loss", spy)
    monkeypatch.setattr(LatentDiffusion, "condition", condition)
    config = dataclasses.replace(CONFIG, cond_drop_prob=arguments.get("cond_drop_prob", 0.0))
    loss_fn = make_diffusion_loss(model, config)
    loss_fn({}, frozen, batch, arguments.get("root", ROOT), jnp.int32(arguments.get("step", 0)))
    return seen


def test_a_sample_draws_the_same_in_every_batch_and_at_every_step(monkeypatch, model, params, batch):
    one = drawn(monkeypatch, model, params[1], batch, cond_drop_prob=0.5)
    other = drawn(monkeypatch, model, params[1], rows(batch, [5, 2]), cond_drop_prob=0.5, step=7)
    for name in ("z0", "epsilon", "t", "tokens"):
        np.testing.assert_array_equal(other[name], one[name][[5, 2]], err_msg=name)


def test_other_samples_and_other_seeds_draw_otherwise(monkeypatch, model, params, batch):
    one = drawn(monkeypatch, model, params[1], batch)
    assert len(np.unique(one["epsilon"])) == one["epsilon"].size
    moved = drawn(monkeypatch, model, params[1], {**batch, "sample_index": batch["sample_index"] + 1})
    np.testing.assert_array_equal(moved["epsilon"][:-1], one["epsilon"][1:])
    seeded = drawn(monkeypatch, model, params[1], batch, root=rng.root_key(1))
    assert not (seeded["epsilon"] == one["epsilon"]).any()


def test_latents_come_from_the_posterior_at_unit_scale(monkeypatch, model, params):
    size = 512
    mean = jnp.full((size, *model.latent_shape), 3.0)
    moments = jnp.concatenate([mean, jnp.full_like(mean, 2 * np.log(0.5))], axis=-1)
    tokens = jnp.zeros((size, 8), jnp.int32)
    batch = {"moments": moments, "tokens": tokens, "sample_index": jnp.arange(size, dtype=jnp.int32)}
    frozen = {"latent": {"mean": jnp.full(2, 3.0), "std": jnp.full(2, 0.5)}}
    found = drawn(monkeypatch, model, frozen, batch)
    for name in ("z0", "epsilon"):
        assert found[name].mean() == pytest.approx(0, abs=0.05)
        assert found[name].std() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(found["z0"].ravel(), found["epsilon"].ravel())[0, 1]) < 0.05
    steps = model.schedule.num_train_timesteps
    assert (found["t"] >= 0).all() and (found["t"] < steps).all()
    counts = np.histogram(found["t"], bins=8, range=(0, steps))[0]
    assert counts.min() > 0.6 * size / 8


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_condition_is_dropped_never_or_always(monkeypatch, model, params, batch, probability: float):
    tokens = drawn(monkeypatch, model, params[1], batch, cond_drop_prob=probability)["tokens"]
    null = np.asarray(model.conditioner.null_inputs(BATCH)["tokens"])
    np.testing.assert_array_equal(tokens, null if probability else np.asarray(batch["tokens"]))


def test_the_condition_is_dropped_as_often_as_asked(monkeypatch, model, params):
    batch = make_batch(model, 1000)
    tokens = drawn(monkeypatch, model, params[1], batch, cond_drop_prob=0.2)["tokens"]
    null = np.asarray(model.conditioner.null_inputs(1)["tokens"])
    assert (tokens == null).all(axis=1).mean() == pytest.approx(0.2, abs=0.04)


def test_the_heldout_loss_is_of_the_sample_alone(model, params, batch):
    trained, frozen = params
    loss_of = jax.jit(lambda p, b: heldout_loss(model, CONFIG, p, b, ROOT))
    everything = {**trained, **frozen}
    loss = loss_of(everything, batch)
    np.testing.assert_array_equal(loss_of(everything, batch), loss)
    turned = loss_of(everything, rows(batch, [7, 6, 5, 4, 3, 2, 1, 0]))
    np.testing.assert_allclose(turned[::-1], loss, rtol=1e-5)
    assert loss.shape == (BATCH,)


def test_heldout_timesteps_cover_the_range_evenly(monkeypatch, model, params):
    seen: list[np.ndarray] = []

    def spy(_denoise_fn: Any, _schedule: Any, _config: Any, z0: jax.Array, epsilon: jax.Array, t: jax.Array) -> Any:
        seen.append(np.asarray(t))
        return jnp.zeros(len(t))

    monkeypatch.setattr(diffusion_step, "diffusion_loss", spy)
    monkeypatch.setattr(LatentDiffusion, "condition", lambda *_, **__: None)
    for first in (0, 1000, 100_000):
        batch = make_batch(model, 50)
        batch["sample_index"] = jnp.arange(first, first + 50, dtype=jnp.int32)
        heldout_loss(model, CONFIG, params[1], batch, ROOT)
        counts = np.histogram(seen[-1], bins=10, range=(0, model.schedule.num_train_timesteps))[0]
        assert counts.min() >= 3
        assert seen[-1].max() < model.schedule.num_train_timesteps


def test_the_conditioner_gets_what_it_reads(model, batch):
    assert set(condition_inputs(model, batch)) == {"tokens"}
