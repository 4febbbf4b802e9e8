"""Which checkpoints stay: newest, best, and every so many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.config import TrainingConfig
from ldm_jax.errors import UserError
from ldm_jax.training.keep_policy import KeepPolicy

LOSSES = {10: 0.5, 20: 0.2, 30: 0.4, 40: 0.2, 50: 0.9, 60: 0.7}
METRICS = {step: {"heldout_loss": loss} for step, loss in LOSSES.items()}


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (KeepPolicy(), {50, 60}),
        (KeepPolicy(newest=9), set(LOSSES)),
        (KeepPolicy(newest=1, best=1), {40, 60}),  # of equal ones the newer
        (KeepPolicy(newest=1, best=3), {20, 30, 40, 60}),
        (KeepPolicy(newest=1, best=2, mode="max"), {50, 60}),
        (KeepPolicy(newest=1, every=20), {20, 40, 60}),
        (KeepPolicy(newest=1, best=1, metric="fid"), {60}),
    ],
)
def test_what_is_kept(policy: KeepPolicy, kept: set[int]):
    assert policy.kept(METRICS) == kept


def test_a_step_that_was_not_measured_is_not_the_best():
    assert KeepPolicy(newest=1, best=1).kept({1: {}, 2: {"heldout_loss": 9.0}, 3: {}}) == {2, 3}


@given(st.sets(st.integers(1, 99), min_size=1), st.integers(1, 4), st.integers(0, 4), st.integers(0, 9))
def test_the_newest_always_stays_and_a_smaller_set_never_keeps_what_a_larger_dropped(
    steps: set[int], newest: int, best: int, every: int
):
    policy = KeepPolicy(newest=newest, best=best, every=every)
    metrics = {step: {"heldout_loss": float(step % 7)} for step in steps}
    kept = policy.kept(metrics)
    assert max(steps) in kept
    assert policy.kept({step: metrics[step] for step in kept}) == kept


def test_it_is_that_of_the_training():
    config = TrainingConfig(keep_checkpoints=3, keep_best=2, best_metric="x", best_mode="max", keep_every=1000)
    assert KeepPolicy.of(config) == KeepPolicy(newest=3, best=2, metric="x", mode="max", every=1000)


def test_a_metric_that_nobody_measures_is_refused():
    policy = KeepPolicy(best=1, metric="fid")
    KeepPolicy(metric="fid").check_measured(["heldout_loss"])
    policy.check_measured(["heldout_loss", "fid"])
    message = "TrainingConfig.best_metric='fid' is not measured here, .*; use one of heldout_l1, heldout_loss"
    with pytest.raises(UserError, match=message):
        policy.check_measured(["heldout_loss", "heldout_l1"])


def test_every_is_a_multiple_of_what_is_saved():
    message = r"TrainingConfig.keep_every=700 is no multiple of checkpoint_every=500; nearest that is: 1000"
    with pytest.raises(UserError, match=message):
        TrainingConfig(checkpoint_every=500, keep_every=700)
