"""The training loss: distances, min-SNR weights of every prediction type, and float32 throughout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.config import DiffusionConfig, ScheduleConfig
from ldm_jax.diffusion.loss import diffusion_loss, distance, min_snr_weight
from ldm_jax.diffusion.prediction import convert, target_for
from ldm_jax.diffusion.schedule import make_schedule

TYPES = ("epsilon", "v", "x0", "flow")
SCHEDULE = make_schedule(ScheduleConfig())
Z0, EPSILON, OTHER = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 5, 2)), jnp.float32)
T = jnp.array([0, 100, 500, 999])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
def test_the_perfect_denoiser_has_no_loss(kind: str, weighting: str) -> None:
    config = DiffusionConfig(prediction_type=kind, weighting=weighting)
    target = target_for(kind, Z0, EPSILON, *SCHEDULE.at(T))
    loss = diffusion_loss(lambda zt, t: target, SCHEDULE, config, Z0, EPSILON, T)
    np.testing.assert_array_equal(loss, np.zeros(4))


def test_the_denoiser_is_given_the_noised_latent_and_its_timesteps() -> None:
    seen = {}

    def denoise(zt, t):
        seen.update(zt=zt, t=t)
        return zt

    diffusion_loss(denoise, SCHEDULE, DiffusionConfig(), Z0, EPSILON, T)
    alpha, sigma = (a[:, None, None, None] for a in SCHEDULE.at(T))
    np.testing.assert_allclose(seen["zt"], alpha * Z0 + sigma * EPSILON, rtol=1e-6)
    np.testing.assert_array_equal(seen["t"], T)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("l2", lambda e: e**2),
        ("l1", abs),
        ("huber", lambda e: 0.5 * e**2 if abs(e) <= 0.3 else 0.3 * (abs(e) - 0.15)),
    ],
)
def test_distances(kind: str, expected) -> None:
    errors = np.linspace(-2, 2, 41)
    result = distance(jnp.asarray(errors, jnp.float32), DiffusionConfig(loss=kind, huber_delta=0.3))
    np.testing.assert_allclose(result, [expected(e) for e in errors], atol=1e-6)


@pytest.mark.parametrize("kind", ["l2", "l1", "huber"])
def test_gradients_are_finite_at_zero_error(kind: str) -> None:
    config = DiffusionConfig(loss=kind)
    assert np.all(np.isfinite(jax.grad(lambda e: distance(e, config).sum())(jnp.zeros(3))))


def test_the_loss_is_a_mean_over_each_latent() -> None:
    loss = diffusion_loss(lambda zt, t: OTHER, SCHEDULE, DiffusionConfig(), Z0, EPSILON, T)
    np.testing.assert_allclose(loss, np.mean(np.square(OTHER - EPSILON), axis=(1, 2, 3)), rtol=1e-5)


def test_min_snr_weights_are_the_papers() -> None:
    snr, gamma = jnp.array([0.01, 1.0, 5.0, 400.0]), 5.0
    clipped = np.minimum(snr, gamma)
    expected = {
        "x0": clipped,
        "epsilon": clipped / snr,
        "v": clipped / (snr + 1),
        "flow": clipped / (snr**0.5 + 1) ** 2,
    }
    for kind, weight in expected.items():
        config = DiffusionConfig(prediction_type=kind, weighting="min_snr", min_snr_gamma=gamma)
        np.testing.assert_allclose(min_snr_weight(config, snr), weight, rtol=1e-6)


def test_min_snr_weights_are_finite_at_zero_snr() -> None:
    weights = [float(min_snr_weight(DiffusionConfig(prediction_type=k), jnp.zeros(1))[0]) for k in TYPES]
    assert weights == [1.0, 0.0, 0.0, 0.0]


def test_min_snr_loss_of_one_denoiser_is_the_same_in_every_prediction_type() -> None:
    """Hang et al. define the weight on the error of x0; saying the same in v or epsilon must not change the loss."""
    losses = []
    for kind in TYPES:
        config = DiffusionConfig(prediction_type=kind, weighting="min_snr")

        def denoise(zt, t, kind=kind):
            return convert(OTHER, "v", kind, zt, *SCHEDULE.at(t))

        losses.append(diffusion_loss(denoise, SCHEDULE, config, Z0, EPSILON, T))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-3)
    np.testing.assert_allclose(losses[3], losses[1], rtol=1e-3)


def test_a_bfloat16_prediction_is_counted_in_float32() -> None:
    prediction = OTHER.astype(jnp.bfloat16)
    loss = diffusion_loss(lambda zt, t: prediction, SCHEDULE, DiffusionConfig(), Z0, EPSILON, T)
    assert loss.dtype == jnp.float32
    expected = np.mean(np.square(prediction.astype(jnp.float32) - EPSILON), axis=(1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
