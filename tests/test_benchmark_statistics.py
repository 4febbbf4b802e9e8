"""Medians, quartiles and the ratio of measurements that were taken in turn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.benchmark.statistics import Spread, ratio_of, spread_of
from ldm_jax.errors import UserError

SECONDS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


def test_median_and_quartiles_of_five_rounds():
    assert spread_of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_between_two_values_it_is_linear():
    assert spread_of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)


@given(SECONDS)
def test_the_order_of_rounds_does_not_matter_and_the_median_lies_between_the_quartiles(seconds: list[float]):
    spread = spread_of(seconds)
    assert min(seconds) <= spread.lower <= spread.median <= spread.upper <= max(seconds)
    assert spread_of(seconds[::-1]) == spread


def test_one_slow_round_does_not_move_the_median():
    assert spread_of([1.0, 1.0, 1.0, 1.0, 900.0]).median == 1.0


def test_the_ratio_is_of_each_round():
    """Both get slower: a ratio of medians would be the same, but its spread would not."""
    assert ratio_of([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == Spread(0.5, 0.5, 0.5)


@given(SECONDS, st.floats(0.1, 10))
def test_a_side_that_takes_so_many_times_as_long_has_that_ratio(seconds: list[float], times: float):
    assert ratio_of([times * s for s in seconds], seconds).median == pytest.approx(times)


def test_nothing_has_no_median():
    with pytest.raises(UserError, match="there is nothing to take a median of: no round was measured; use --rounds 1"):
        spread_of([])


def test_rounds_of_one_side_alone_have_no_ratio():
    with pytest.raises(UserError, match="2 rounds of one side and 1 of the other cannot be compared in turn"):
        ratio_of([1.0, 2.0], [1.0])
