"""How close two results are: errors, verdicts, and what does not compare."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_jax.interop.cases.comparison import Comparison, as_json, as_table, compare

REFERENCE = np.array([[0.5, -4.0], [1.0, 2.0]])


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_the_error_is_relative_to_the_largest_value_or_one(shift: float, scale: float):
    row = compare("x", REFERENCE * scale + shift, REFERENCE * scale, 1e-4)
    assert row.error == pytest.approx(abs(shift), rel=1e-6, abs=1e-9)
    assert row.relative == pytest.approx(row.error / max(1.0, 4.0 * scale))
    assert row.passed == (row.relative <= 1e-4)


def test_integers_have_to_be_equal():
    codes = np.array([1, 2, 3])
    assert compare("indices", codes, codes, 1e-4).passed
    assert not compare("indices", np.array([1, 2, 4]), codes, 10.0).passed


def test_another_shape_differs_and_says_so():
    row = compare("x", REFERENCE[:1], REFERENCE, 1e9)
    assert not row.passed
    assert row.note == "shape [1, 2] instead of [2, 2]"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_differs(value: float):
    ours = REFERENCE.copy()
    ours[0, 0] = value
    assert not compare("x", ours, REFERENCE, 1e9).passed


def test_the_table_has_a_line_for_each_output():
    rows = [compare("mean", REFERENCE, REFERENCE, 1e-4), compare("logvar", REFERENCE + 1, REFERENCE, 1e-4, "why")]
    head, first, second = as_table(rows).splitlines()
    assert head.split() == ["output", "max", "|error|", "relative", "tolerance"]
    assert first.split() == ["mean", "0.00e+00", "0.0e+00", "1.0e-04", "ok"]
    assert second.split() == ["logvar", "1.00e+00", "2.5e-01", "1.0e-04", "DIFFERS", "(why)"]


def test_programs_get_the_same():
    rows = [Comparison("x", np.inf, np.inf, 1e-4), Comparison("y", 0.0, 0.0, 1e-4)]
    found = json.loads(as_json(rows))
    assert found["passed"] is False
    assert [(o["name"], o["error"], o["passed"]) for o in found["outputs"]] == [("x", "inf", False), ("y", 0.0, True)]
