"""What discriminator and autoencoder make of verdicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.autoencoder import adversarial as a
from ldm_jax.config import DiscriminatorConfig
from ldm_jax.errors import UserError

KINDS = ("hinge", "vanilla", "non_saturating")


def verdicts(value: float) -> jax.Array:
    return jnp.full((2, 3, 3, 1), value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_discriminator_that_is_right_loses_less_and_the_autoencoder_more(kind: a.AdversarialKind):
    right, wrong = (float(a.discriminator_loss(kind, verdicts(s), verdicts(-s))) for s in (2.0, -2.0))
    assert right < wrong
    assert float(a.generator_loss(kind, verdicts(-2.0))) > float(a.generator_loss(kind, verdicts(2.0)))


@pytest.mark.parametrize(("kind", "expected"), [("hinge", 1.0), ("vanilla", np.log(2)), ("non_saturating", np.log(2))])
def test_the_loss_of_a_discriminator_that_does_not_know(kind: a.AdversarialKind, expected: float):
    assert float(a.discriminator_loss(kind, verdicts(0.0), verdicts(0.0))) == pytest.approx(expected)


def test_hinge_asks_for_no_more_than_a_margin_of_one():
    assert float(a.discriminator_loss("hinge", verdicts(1.0), verdicts(-1.0))) == 0.0
    gradient = jax.grad(lambda real: a.discriminator_loss("hinge", real, verdicts(-5.0)))(verdicts(5.0))
    assert float(jnp.max(jnp.abs(gradient))) == 0.0


def test_the_adaptive_weight_makes_both_gradients_equally_long_up_to_its_cap():
    weight = float(a.adaptive_weight(jnp.float32(12.0), jnp.float32(2.0), 1e4))
    assert weight * 2.0 == pytest.approx(12.0, rel=1e-3)
    assert float(a.adaptive_weight(jnp.float32(12.0), jnp.float32(0.0), 7.0)) == 7.0


def test_of_a_verdict_without_a_gradient_the_floor_bounds_the_weight_before_a_cap_of_1e4():
    weight = float(a.adaptive_weight(jnp.float32(0.5), jnp.float32(0.0), 1e4))
    assert weight == pytest.approx(0.5 / a.GRADIENT_FLOOR)


def test_r1_of_a_linear_judge_is_half_its_squared_slope():
    slope = jnp.arange(1.0, 13.0).reshape(2, 2, 3)
    judge = lambda x: jnp.einsum("bhwc,hwc->b", x, slope).reshape(-1, 1, 1, 1)  # noqa: E731
    image = jnp.ones((5, 2, 2, 3))
    assert float(a.r1_penalty(judge, image)) == pytest.approx(0.5 * float(jnp.sum(slope**2)))


def test_lecam_lets_verdicts_alone_that_have_not_left_the_other_side():
    assert float(a.lecam(verdicts(-1.0), verdicts(1.0), jnp.float32(0.5), jnp.float32(-0.5))) == 0.0
    assert float(a.lecam(verdicts(2.0), verdicts(-1.0), jnp.float32(1.0), jnp.float32(-0.5))) == pytest.approx(10.25)


def test_who_learns_and_who_hears_when():
    config = DiscriminatorConfig(start_step=10, warmup_steps=5, ramp_steps=4)
    steps = jnp.asarray([0, 9, 10, 14, 15, 16, 18, 100])
    learns = jax.vmap(lambda s: a.discriminator_learns(config, s))(steps)
    hears = jax.vmap(lambda s: a.generator_hears(config, s))(steps)
    assert learns.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert hears.tolist() == [0, 0, 0, 0, 0.25, 0.5, 1, 1]


def test_without_a_ramp_the_verdict_counts_at_once():
    config = DiscriminatorConfig(start_step=3)
    assert [float(a.generator_hears(config, jnp.int32(s))) for s in (2, 3)] == [0.0, 1.0]


def test_pictures_too_small_for_the_layers_are_refused():
    DiscriminatorConfig(num_layers=3).check_image_size(24)
    with pytest.raises(UserError, match=r"num_layers=3 leaves nothing of .*image_size=16; use at most 2"):
        DiscriminatorConfig(num_layers=3).check_image_size(16)
    with pytest.raises(UserError, match="use larger pictures"):
        DiscriminatorConfig(num_layers=2).check_image_size(4)
