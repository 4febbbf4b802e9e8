"""The whole step of a first stage with all there is: LPIPS, a discriminator, and codes that follow by averages."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tiny import random_perceptual, tiny_experiment

from ldm_jax import rng, sharding
from ldm_jax.autoencoder.adversarial import GRADIENT_FLOOR
from ldm_jax.config import (
    AutoencoderVQConfig,
    DataConfig,
    DiscriminatorConfig,
    Experiment,
    FirstStageConfig,
    MeshConfig,
    OptimizerConfig,
    PerceptualConfig,
)
from ldm_jax.model import LatentDiffusion, make_model
from ldm_jax.training.alarms import Alarms, first_stage_alarms
from ldm_jax.training.autoencoder_state import init_averages, init_first_stage, make_follow
from ldm_jax.training.autoencoder_step import make_autoencoder_loss
from ldm_jax.training.optimizers import make_first_stage_optimizer
from ldm_jax.training.state import TrainState
from ldm_jax.training.step import make_step

ROOT = rng.root_key(0)
PLAIN = OptimizerConfig(learning_rate=0.1, epsilon=1.0)  # Adam would make a step of every rounding error near zero
JUDGE = DiscriminatorConfig(
    base_channels=4, num_layers=1, start_step=2, warmup_steps=2, lecam_weight=0.1, r1_weight=0.1, optimizer=PLAIN
)


CODES, RESTART = 16, 0.5


class Trial(NamedTuple):
    model: LatentDiffusion
    config: FirstStageConfig
    state: TrainState
    batch: dict[str, jax.Array]


@pytest.fixture(scope="module")
def trial(data_cache: Path) -> Trial:
    experiment = tiny_experiment(data_cache)
    fields = dataclasses.asdict(experiment.first_stage.autoencoder)
    del fields["kl_weight"]
    autoencoder = AutoencoderVQConfig(
        **fields, codebook_size=CODES, codes="average", code_decay=0.05, restart_usage=RESTART
    )
    config = dataclasses.replace(
        experiment.first_stage,
        autoencoder=autoencoder,
        perceptual=PerceptualConfig(weight=0.5, net="alexnet"),
        discriminator=JUDGE,
        learn_output_logvar=True,
        optimizer=PLAIN,
    )
    data = dataclasses.replace(experiment.data, image_size=32)
    model = make_model(dataclasses.replace(experiment, data=data, first_stage=config))
    params = jax.jit(lambda key: init_first_stage(model, config, key))(ROOT)
    numbers = np.random.default_rng(1)
    params["discriminator"] = jax.tree.map(
        lambda x: jnp.asarray(0.3 * numbers.normal(size=x.shape), jnp.float32), params["discriminator"]
    )
    image = numbers.uniform(-1, 1, (8, *model.image_shape)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "sample_index": jnp.arange(8, dtype=jnp.int32)}
    optimizer = make_first_stage_optimizer(config)
    state = TrainState.create(params, init_averages(config, params), optimizer)
    constants = jax.tree.map(jnp.asarray, {"perceptual": random_perceptual("alexnet")})
    return Trial(model, config, state._replace(constants=constants), batch)


@pytest.fixture(scope="module")
def gradient_of(trial: Trial) -> Any:
    """Loss, metrics and gradient at a step: of the trial's parameters, once for all tests, or of others."""
    loss_fn = make_autoencoder_loss(trial.model, trial.config)
    compiled = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    fixed = {**trial.state.frozen, **trial.state.constants}

    @functools.cache
    def usual(step: int) -> Any:
        return compiled(trial.state.params, fixed, trial.batch, ROOT, jnp.int32(step))

    def of(step: int, params: Any = None) -> Any:
        return usual(step) if params is None else compiled(params, fixed, trial.batch, ROOT, jnp.int32(step))

    return of


def size(tree: Any) -> float:
    return float(jnp.linalg.norm(ravel_pytree(tree)[0]))


@pytest.mark.slow
def test_each_network_learns_in_its_time(trial: Trial, gradient_of: Any):
    (_, early), alone = gradient_of(0)
    _, warming = gradient_of(2)
    _, heard = gradient_of(4)
    assert size(alone["discriminator"]) == 0.0
    assert size(warming["discriminator"]) > 0.0
    np.testing.assert_allclose(
        ravel_pytree(alone["autoencoder"])[0], ravel_pytree(warming["autoencoder"])[0], atol=1e-6
    )
    assert size(jax.tree.map(jnp.subtract, heard["autoencoder"], alone["autoencoder"])) > 1e-4
    names = {
        "perceptual",
        "generator_loss",
        "discriminator_loss",
        "adaptive_weight",
        "verdict_real",
        "verdict_fake",
        "code_usage",
    }
    assert names < set(early)


def test_the_autoencoder_does_not_move_the_discriminator(trial: Trial, gradient_of: Any):
    """Hearing or not, the discriminator's gradient is that of its own loss."""
    _, warming = gradient_of(3)
    _, heard = gradient_of(4)
    np.testing.assert_allclose(
        ravel_pytree(warming["discriminator"])[0], ravel_pytree(heard["discriminator"])[0], rtol=1e-5, atol=1e-7
    )


def test_the_adaptive_weight_is_the_ratio_of_whole_gradients(trial: Trial, gradient_of: Any):
    """The last layer's share of the gradient with and without the verdict, seen from outside."""
    (_, metrics), heard = gradient_of(4)
    _, alone = gradient_of(0)
    of_error, both = (g["autoencoder"]["decoder"]["conv_out"]["kernel"] for g in (alone, heard))
    of_verdict = (both - of_error) / (JUDGE.weight * metrics["adaptive_weight"])
    assert float(metrics["adaptive_weight"]) == pytest.approx(size(of_error) / (size(of_verdict) + 1e-4), rel=1e-3)


def test_a_discriminator_that_says_the_same_of_every_picture_rings(
    trial: Trial, gradient_of: Any, caplog: pytest.LogCaptureFixture
):
    """The weight is then as large as it can be, and far from the cap of 1e4 that is LDM's."""
    judge = trial.state.params["discriminator"]
    last = {
        "kernel": jnp.zeros_like(judge["conv_out"]["kernel"]),
        "bias": jnp.full_like(judge["conv_out"]["bias"], 0.3),
    }
    constant = {**trial.state.params, "discriminator": {**judge, "conv_out": last}}
    (_, well), _ = gradient_of(4)
    (_, ill), _ = gradient_of(4, constant)
    assert float(ill["verdict_real"]) == float(ill["verdict_fake"]) == pytest.approx(0.3, rel=1e-4)
    assert float(ill["generator_gradient"]) == 0.0 < GRADIENT_FLOOR < float(well["generator_gradient"])
    assert 10 * well["adaptive_weight"] < ill["adaptive_weight"] < 0.5 * JUDGE.max_adaptive_weight

    positions = int(np.prod(trial.model.latent_shape[:-1]))
    alarms = Alarms(lambda history: first_stage_alarms(trial.config, positions, history))
    told = [{name: float(value) for name, value in m.items() if np.ndim(value) == 0} for m in (well, ill)]
    assert [alarms(told[0], 5 + i) for i in range(7)] == [0] * 7
    assert alarms(told[1], 12) == 2
    assert "verdict has vanished" in caplog.text and "the adaptive weight has leapt to" in caplog.text


def test_codes_have_no_gradient_and_follow(trial: Trial, gradient_of: Any):
    (_, metrics), gradients = gradient_of(0)
    assert size(gradients["autoencoder"]["codebook"]) == 0.0
    follow = make_follow(trial.config)
    params, frozen = follow(trial.state.params, trial.state.frozen, metrics, ROOT, jnp.int32(0))
    moved = params["autoencoder"]["codebook"]["embedding"] - trial.state.params["autoencoder"]["codebook"]["embedding"]
    assert size(moved) > 0
    assert float(frozen["verdict_average"]["real"]) == pytest.approx(0.01 * float(metrics["verdict_real"]), rel=1e-4)


def num_shared(params: Any) -> int:
    """How many parameters lie in shares along `fsdp`."""
    return sum("fsdp" in leaf.sharding.spec for leaf in jax.tree.leaves(params))


def take_codes(state: TrainState) -> dict[str, np.ndarray]:
    """The averages of the codes and of what follows from them, removed from the state."""
    averages = state.frozen.pop("code_average")
    codes = state.params["autoencoder"].pop("codebook")["embedding"]
    np.testing.assert_allclose(codes, averages["total"] / averages["share"][:, None], rtol=1e-6)
    return {**averages, "ema": state.ema_params["autoencoder"].pop("codebook")["embedding"]}


def assert_codes_are_alike(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], vectors: int) -> None:
    """But for a latent vector or two on a border: restarted codes are so near each other that rounding decides."""
    border = 2 / vectors
    np.testing.assert_allclose(found["share"], expected["share"], rtol=1e-5, atol=border)
    longest = np.max(np.abs(expected["total"] / expected["share"][:, None]))
    np.testing.assert_allclose(found["total"], expected["total"], rtol=1e-5, atol=border * longest)
    moved = border * longest / np.min(expected["share"])  # of a code, at most
    np.testing.assert_allclose(found["ema"], expected["ema"], rtol=1e-5, atol=moved)


@pytest.mark.slow
def test_steps_on_eight_devices_are_those_on_one(trial: Trial, monkeypatch: pytest.MonkeyPatch):
    """LPIPS, batch statistics, codes and their restarts, averages and both optimizers included, and parameters in
    shares that are gathered as the program does.

    The norm of each parameter's gradient is compared, and the gradient itself by what the optimizer made of it: with
    `PLAIN` a parameter moves first by 0.1 g / (|g| + 1).
    """
    monkeypatch.setattr(sharding, "MIN_FSDP_SIZE", 64)  # these are small
    ends = []
    for devices, mesh_config in ((1, MeshConfig()), (8, MeshConfig(data=2, fsdp=4))):
        mesh = sharding.make_mesh(mesh_config, jax.devices()[:devices])
        shardings = sharding.state_shardings(mesh, trial.state)
        state = jax.device_put(trial.state._replace(step=jnp.int32(3)), shardings)
        batch = sharding.put_batch(mesh, {name: np.asarray(x) for name, x in trial.batch.items()})
        step = make_step(
            make_autoencoder_loss(trial.model, trial.config),
            make_first_stage_optimizer(trial.config),
            trial.config.training,
            make_follow(trial.config),
            sharding.make_gather(mesh, "float32"),
        )
        compiled = jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh)))
        for _ in range(2):
            state, metrics = compiled(state, batch, ROOT)
        for name in ("autoencoder", "discriminator"):
            assert num_shared(state.params[name]) == num_shared(state.ema_params[name])
            assert (num_shared(state.params[name]) > 1) == (devices > 1), name
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.constants))
        ends.append(jax.device_get((state, metrics)))
    (one, of_one), (eight, of_eight) = ends
    assert float(of_one["perceptual"]) > 0.01
    for name in ("loss", "perceptual", "adaptive_weight", "discriminator_loss"):
        assert float(of_one[name]) == pytest.approx(float(of_eight[name]), rel=1e-4), name
    np.testing.assert_allclose(of_eight["leaf_norms"], of_one["leaf_norms"], rtol=1e-3, atol=1e-6)
    assert np.min(of_one["code_share"]) < RESTART / CODES, (
        "a code almost without work, which has half of another's now:"
    )
    assert np.min(one.frozen["code_average"]["share"]) >= 0.5 * RESTART / CODES
    assert_codes_are_alike(take_codes(eight), take_codes(one), vectors=8 * np.prod(trial.model.latent_shape[:-1]))
    for name, tree in (("params", one.params), ("frozen", one.frozen)):
        expected, found = ravel_pytree(tree)[0], ravel_pytree(getattr(eight, name))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert size(jax.tree.map(np.subtract, one.params["discriminator"], trial.state.params["discriminator"])) > 0
    for name in ("autoencoder", "discriminator"):  # two steps of a warmed-up average: decays 2/11 and 3/12 at first
        assert size(jax.tree.map(np.subtract, one.ema_params[name], one.params[name])) > 0
    np.testing.assert_allclose(ravel_pytree(eight.ema_params)[0], ravel_pytree(one.ema_params)[0], rtol=1e-3, atol=1e-5)


def gradient_with(trial: Trial, **changes: Any) -> tuple[float, dict[str, Any]]:
    """Loss and gradient once the discriminator is heard, of the same parameters computed in another way."""
    experiment = Experiment(
        data=DataConfig(image_size=32),
        first_stage=dataclasses.replace(
            trial.config,
            training=dataclasses.replace(trial.config.training, remat=changes.pop("remat", "none")),
        ),
        **changes,
    )
    loss_fn = make_autoencoder_loss(make_model(experiment), experiment.first_stage)
    fixed = {**trial.state.frozen, **trial.state.constants}
    compiled = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, _), gradient = compiled(trial.state.params, fixed, trial.batch, ROOT, jnp.int32(4))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    return float(loss), gradient


@pytest.mark.slow
def test_what_is_computed_again_changes_nothing(trial: Trial, gradient_of: Any):
    (loss, _), expected = gradient_of(4)
    again, gradient = gradient_with(trial, remat="full")
    assert again == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(ravel_pytree(gradient)[0], ravel_pytree(expected)[0], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_in_bfloat16_the_loss_is_near_and_each_gradient_points_the_same_way(trial: Trial, gradient_of: Any):
    """Roughly: latents between two codes take the other one."""
    (loss, _), expected = gradient_of(4)
    narrow, gradient = gradient_with(trial, compute_dtype="bfloat16")
    assert narrow == pytest.approx(float(loss), rel=0.03)
    for name in ("autoencoder", "discriminator"):
        one, other = ravel_pytree(expected[name])[0], ravel_pytree(gradient[name])[0]
        assert float(one @ other) > 0.8 * float(jnp.linalg.norm(one) * jnp.linalg.norm(other)), name
