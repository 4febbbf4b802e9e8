"""Alarms: each known failure is named with what to do, once."""

import dataclasses
import logging

import pytest

from ldm_jax.config import AutoencoderKLConfig, AutoencoderVQConfig, DiscriminatorConfig, FirstStageConfig
from ldm_jax.training.alarms import SETTLED, Alarms, first_stage_alarms

JUDGED = FirstStageConfig(
    autoencoder=AutoencoderVQConfig(codebook_size=100),
    discriminator=DiscriminatorConfig(start_step=10, warmup_steps=5, max_adaptive_weight=50.0),
)
WELL = {"discriminator_accuracy": 0.7, "adaptive_weight": 3.0, "perplexity": 60.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"discriminator_accuracy": 0.99}, "the discriminator is right 99% of the time"),
        ({"adaptive_weight": 50.0}, "the adaptive weight is at its cap of 50"),
        ({"perplexity": 3.0}, "the 100 codes are used as 3 would be"),
    ],
)
def test_each_failure_is_named(wrong: dict[str, float], said: str):
    assert first_stage_alarms(JUDGED, WELL, SETTLED) == {}
    (sentence,) = first_stage_alarms(JUDGED, {**WELL, **wrong}, SETTLED).values()
    assert sentence.startswith(said)
    assert "; " in sentence


def test_a_discriminator_that_is_not_heard_yet_may_be_right():
    assert first_stage_alarms(JUDGED, {**WELL, "discriminator_accuracy": 1.0, "adaptive_weight": 1e4}, 14) == {}


def test_a_discriminator_without_weight_is_none():
    """Nor is it created, and nothing of it is measured."""
    silent = dataclasses.replace(JUDGED, discriminator=DiscriminatorConfig(weight=0.0, start_step=0))
    assert silent.judge is None
    assert first_stage_alarms(silent, {"perplexity": 60.0}, SETTLED) == {}


def test_a_posterior_like_the_prior_is_named():
    config = FirstStageConfig(autoencoder=AutoencoderKLConfig())
    assert first_stage_alarms(config, {"posterior_std": 0.1}, SETTLED) == {}
    (sentence,) = first_stage_alarms(config, {"posterior_std": 0.97}, SETTLED).values()
    assert sentence.startswith("the posterior is 0.97 wide") and "kl_weight" in sentence


def test_what_every_training_begins_with_is_no_alarm():
    config = FirstStageConfig(autoencoder=AutoencoderKLConfig())
    assert first_stage_alarms(config, {"posterior_std": 1.05}, SETTLED - 1) == {}
    assert first_stage_alarms(JUDGED, {**WELL, "perplexity": 1.0}, SETTLED - 1) == {}


def test_it_is_said_once_and_again_after_a_recovery(caplog: pytest.LogCaptureFixture):
    alarms = Alarms(lambda metrics, step: first_stage_alarms(JUDGED, metrics, step))
    bad = {**WELL, "perplexity": 3.0}
    with caplog.at_level(logging.WARNING):
        counts = [alarms(metrics, 200 + i) for i, metrics in enumerate([bad, bad, WELL, {**bad, "perplexity": 2.0}])]
    assert counts == [1, 1, 0, 1]
    assert [record.getMessage()[:9] for record in caplog.records] == ["step 200:", "step 203:"]
