"""The roofline: its limits by hand, its calibration and its price."""

from typing import Any

import pytest

from ldm_jax.planning.collectives import Collective
from ldm_jax.planning.roofline import Prediction, assumptions, predict
from ldm_jax.planning.topology import parse_topology

V5P = parse_topology("v5p-64")
SECOND_OF_FLOPS = 64 * 459e12
"""What all chips compute in a second."""


def prediction(**changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "flops": SECOND_OF_FLOPS,
        "model_flops": SECOND_OF_FLOPS / 2,
        "bytes_accessed": 0,
        "collectives": (),
        "batch_size": 128,
        "num_steps": 3600,
    }
    return predict(V5P, **{**values, **changes})


def reduction(*, asynchronous: bool, seconds: float) -> Collective:
    return Collective(
        kind="collective-permute",
        axes=("data",),
        group_size=8,
        across_nodes=False,
        asynchronous=asynchronous,
        count=1,
        num_bytes=int(seconds * 200e9),
    )


def test_arithmetic_alone():
    result = prediction()
    assert result.step_seconds == pytest.approx(1.0)
    assert result.images_per_second == pytest.approx(128)
    assert result.mfu == pytest.approx(0.5)
    assert result.chip_hours == pytest.approx(64)
    assert result.cost is None
    assert result.bound_by == "arithmetic"


def test_the_slower_of_arithmetic_and_memory_decides():
    result = prediction(bytes_accessed=int(3 * 2765e9))
    assert result.step_seconds == pytest.approx(3.0)
    assert result.bound_by == "memory bandwidth"


def test_what_overlaps_hides_and_what_does_not_adds():
    hidden = prediction(collectives=[reduction(asynchronous=True, seconds=0.25)])
    assert (hidden.step_seconds, hidden.hidden_seconds, hidden.exposed_seconds) == pytest.approx((1.0, 0.25, 0.0))
    exposed = prediction(collectives=[reduction(asynchronous=False, seconds=0.25)])
    assert (exposed.step_seconds, exposed.hidden_seconds, exposed.exposed_seconds) == pytest.approx((1.25, 0.0, 0.25))
    longer = prediction(collectives=[reduction(asynchronous=True, seconds=2.5)])
    assert (longer.step_seconds, longer.hidden_seconds, longer.exposed_seconds) == pytest.approx((2.5, 1.0, 1.5))
    assert longer.bound_by == "collectives"


def test_calibration_multiplies_and_price_pays():
    result = prediction(calibration=1.5, price=2.0)
    assert result.step_seconds == pytest.approx(1.5)
    assert result.mfu == pytest.approx(1 / 3)
    assert result.cost == pytest.approx(2 * 1.5 * 64)


@pytest.mark.parametrize(
    ("name", "said"),
    [("v5p-64", "both directions"), ("v5e-16", "one direction"), ("h100-64", "50 GB/s between nodes")],
)
def test_what_is_assumed_is_said(name: str, said: str):
    told = list(assumptions(parse_topology(name), compute_dtype="float32", calibration=1.0, bytes_source="a guess"))
    assert any(said in line for line in told)
    assert "calibration 1: not calibrated on hardware" in told
    assert "bytes accessed: a guess" in told
    assert any("compute_dtype=float32 is predicted at the bfloat16 peak" in line for line in told)
