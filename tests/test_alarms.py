"""Alarms: each known failure is named with what to do, once, at whatever size and learning rate."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import pytest

from ldm_jax.config import (
    AutoencoderKLConfig,
    AutoencoderVQConfig,
    DiscriminatorConfig,
    FirstStageConfig,
    OptimizerConfig,
    TrainingConfig,
    load_experiment,
)
from ldm_jax.training.alarms import KEPT, REACH, SEVERAL, Alarms, Metrics, Report, first_stage_alarms, settled_step
from ldm_jax.training.optimizers import learning_rate_schedule

QUICK = OptimizerConfig(learning_rate=2e-3, warmup_steps=50)
SETTLED = 200
"""Its `settled_step`."""
JUDGED = FirstStageConfig(
    autoencoder=AutoencoderVQConfig(codebook_size=100),
    discriminator=DiscriminatorConfig(start_step=10, warmup_steps=5, max_adaptive_weight=50.0),
    optimizer=QUICK,
)
POSITIONS = 16
WELL = {"discriminator_accuracy": 0.7, "adaptive_weight": 3.0, "generator_gradient": 0.1, "perplexity": 60.0}


def reports(metrics: Sequence[Metrics], last: int = SETTLED) -> list[Report]:
    """Of every step, up to the last."""
    return [Report(last - len(metrics) + 1 + i, values) for i, values in enumerate(metrics)]


def found(metrics: Sequence[Metrics], config: FirstStageConfig = JUDGED, last: int = SETTLED) -> dict[str, str]:
    return first_stage_alarms(config, POSITIONS, reports(metrics, last))


def with_weights(*weights: float) -> list[Metrics]:
    return [{**WELL, "adaptive_weight": weight} for weight in weights]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"generator_gradient": 0.0}, "the gradient of the discriminator's verdict has vanished"),
        ({"adaptive_weight": 31.0}, "the adaptive weight has leapt to 31 from about 3"),
    ],
)
def test_each_failure_is_named(wrong: Metrics, said: str):
    well = [WELL] * 20
    assert found(well) == {}
    (sentence,) = found([*well, {**WELL, **wrong}]).values()
    assert sentence.startswith(said)
    assert "; " in sentence


def test_a_discriminator_has_won_when_it_is_right_over_several_reports():
    """Of single batches some are judged right altogether long before."""
    right, fair = {**WELL, "discriminator_accuracy": 0.99}, {**WELL, "discriminator_accuracy": 0.96}
    assert found([right] * (SEVERAL - 1)) == {}
    assert found([right, right, fair, fair, right, right]) == {}
    (sentence,) = found([WELL] + [right] * SEVERAL).values()
    assert sentence.startswith("the discriminator is right 99.0% of the time") and "r1_weight" in sentence


def test_codes_are_dead_when_few_are_in_use_over_several_reports():
    few, last = {**WELL, "perplexity": 3.0}, SETTLED + 20
    assert found([few] * 20 + [WELL] + [few] * (SEVERAL - 1), last=last) == {}
    (sentence,) = found([WELL] + [few] * SEVERAL, last=last).values()
    assert sentence.startswith("the 100 codes are used as 3 would be: most are dead; ")


def test_a_discriminator_that_is_not_heard_yet_may_be_anything():
    """And nothing of that time counts for the mean and the median behind it."""
    unheard = {**WELL, "discriminator_accuracy": 1.0, "adaptive_weight": 1e-3, "generator_gradient": 0.0}
    assert found([unheard] * 15, last=15) == {}
    assert set(found([unheard] * 16, last=16)) == {"verdict's gradient"}
    assert found([unheard] * 15 + [WELL] * SEVERAL, last=15 + SEVERAL) == {}


def test_a_weight_that_wavers_or_falls_is_well():
    assert found(with_weights(*(3.0 * 1.9 ** np.random.default_rng(0).uniform(-1, 1, KEPT)))) == {}
    assert found(with_weights(*np.geomspace(40.0, 0.01, KEPT))) == {}
    assert found(with_weights(*[1e-3] * (SEVERAL - 1), 1.0)) == {}, "there is no past yet"


def test_a_weight_that_came_to_its_cap_and_stays_is_named():
    assert found(with_weights(*[20.0] * 10, *[50.0] * (SEVERAL - 1))) == {}
    (sentence,) = found(with_weights(*[20.0] * 10, *[50.0] * SEVERAL)).values()
    assert sentence.startswith("the adaptive weight has come from about 20 to its cap of 50")


def test_a_weight_that_began_at_its_cap_is_as_it_was_meant():
    """As it may with LDM's KL autoencoders, whose cap is 0.05 in the unit of a mean."""
    assert found(with_weights(*[50.0] * KEPT)) == {}
    assert found(with_weights(*[50.0] * 20, *[30.0] * 10, *[50.0] * SEVERAL)) == {}


def test_a_verdict_of_constant_weight_has_no_alarm_of_its_weight():
    fixed = dataclasses.replace(JUDGED, discriminator=DiscriminatorConfig(start_step=0, adaptive=False))
    metrics = {"discriminator_accuracy": 0.99, "perplexity": 60.0}
    assert set(found([metrics] * 10, fixed)) == {"discriminator"}


def test_a_discriminator_without_weight_is_none():
    """Nor is it created, and nothing of it is measured."""
    silent = dataclasses.replace(JUDGED, discriminator=DiscriminatorConfig(weight=0.0, start_step=0))
    assert silent.judge is None
    assert found([{"perplexity": 60.0}], silent) == {}


@pytest.mark.parametrize("codebook_size", [100, 16_384])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_codes_are_held_against_what_a_micro_batch_can_show(codebook_size: int, accumulation: int):
    """All vectors of a micro-batch at codes of their own are all that can be, however many codes there are."""
    config = FirstStageConfig(
        autoencoder=AutoencoderVQConfig(codebook_size=codebook_size),
        training=TrainingConfig(batch_size=32, gradient_accumulation=accumulation),
        optimizer=QUICK,
    )
    vectors = 32 // accumulation * POSITIONS
    most = min(codebook_size, vectors)
    last = SETTLED + SEVERAL
    assert found([{"perplexity": 0.06 * most}] * SEVERAL, config, last) == {}
    (sentence,) = found([{"perplexity": 0.04 * most}] * SEVERAL, config, last).values()
    assert (f"by {vectors} vectors" in sentence) == (vectors < codebook_size)


def test_a_posterior_like_the_prior_is_named():
    config = FirstStageConfig(autoencoder=AutoencoderKLConfig(), optimizer=QUICK)
    assert found([{"posterior_std": 0.1}], config) == {}
    (sentence,) = found([{"posterior_std": 0.97}], config).values()
    assert sentence.startswith("the posterior is 0.97 wide") and "kl_weight" in sentence


def test_what_every_training_begins_with_is_no_alarm():
    config = FirstStageConfig(autoencoder=AutoencoderKLConfig(), optimizer=QUICK)
    assert found([{"posterior_std": 1.05}], config, SETTLED - 1) == {}
    begun = [{**WELL, "perplexity": 1.0}] * 20
    assert found(begun, last=SETTLED + SEVERAL - 2) == {}, "nothing from before counts"
    assert set(found(begun, last=SETTLED + SEVERAL - 1)) == {"codes"}


@pytest.mark.parametrize(
    "optimizer",
    [
        QUICK,
        OptimizerConfig(learning_rate=1.8e-4),
        OptimizerConfig(learning_rate=1e-3, warmup_steps=1000),  # judged within the warm-up
        OptimizerConfig(learning_rate=1e-3, warmup_steps=100),
    ],
)
def test_a_first_stage_is_judged_when_its_learning_rates_have_added_up(optimizer: OptimizerConfig):
    schedule = learning_rate_schedule(optimizer, 10_000)
    rates = np.cumsum(np.broadcast_to(np.asarray(schedule(np.arange(10_000)), np.float64), 10_000))
    assert settled_step(optimizer) == pytest.approx(np.searchsorted(rates, REACH), rel=0.01, abs=1)


def test_the_zoo_is_judged_after_thousands_of_steps():
    config = load_experiment("zoo/kl-f8").first_stage
    assert found([{"posterior_std": 1.0}], dataclasses.replace(config, discriminator=None), 10_000) == {}
    assert 0.05 < settled_step(config.optimizer) / config.training.num_steps < 0.1


def test_it_is_said_once_and_again_after_a_recovery(caplog: pytest.LogCaptureFixture):
    alarms = Alarms(lambda history: first_stage_alarms(JUDGED, POSITIONS, history))
    bad = {**WELL, "generator_gradient": 0.0}
    with caplog.at_level(logging.WARNING):
        counts = [alarms(metrics, 200 + i) for i, metrics in enumerate([bad, bad, WELL, bad])]
    assert counts == [1, 1, 0, 1]
    assert [record.getMessage()[:9] for record in caplog.records] == ["step 200:", "step 203:"]


def test_only_the_newest_reports_are_remembered():
    lengths = []
    alarms = Alarms(lambda history: lengths.append((len(history), history[-1].step)) or {})
    for step in range(KEPT + 3):
        alarms(WELL, step)
    assert lengths[-1] == (KEPT, KEPT + 2)
