"""Options of other systems: every one is asked for, of the right kind, and refused by name otherwise."""

from collections.abc import Callable
from typing import Any

import pytest

from ldm_jax.errors import UserError
from ldm_jax.interop.original_options import Options


def read(method: str, *arguments: Any, **values: Any) -> Any:
    return getattr(Options(values, "file.yaml"), method)("x", *arguments)


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("whole", 3, 3),
        ("whole_or_none", None, None),
        ("wholes", [1, 2], (1, 2)),
        ("wholes_or_none", None, None),
        ("wholes_or_none", [4], (4,)),
        ("whole_or_wholes", [1, 2], (1, 2)),
        ("whole_or_wholes", 2, 2),
        ("number", 2, 2.0),
        ("number", "1e-4", 1e-4),
        ("flag", False, False),
    ],
)
def test_values_of_the_right_kind_are_taken(method: str, value: Any, expected: Any) -> None:
    assert read(method, x=value) == expected


@pytest.mark.parametrize(
    ("method", "value", "kind"),
    [
        ("whole", True, "a whole number"),
        ("whole", 2.0, "a whole number"),
        ("whole_or_none", "a", "a whole number or null"),
        ("wholes", [1, 2.5], "a list of whole numbers"),
        ("wholes_or_none", 3, "a list of whole numbers"),
        ("whole_or_wholes", "ab", "a whole number or a list of them"),
        ("number", "ab", "a number"),
        ("number", None, "a number"),
        ("number", True, "a number"),
        ("flag", 1, "true or false"),
    ],
)
def test_values_of_another_kind_are_refused(method: str, value: Any, kind: str) -> None:
    with pytest.raises(UserError, match=r"^file.yaml: x=.* must be " + kind + "$"):
        read(method, x=value)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Options([1], "file.yaml"), r"file.yaml is \[1\]; expected a table of options"),
        (lambda: read("whole"), "file.yaml: x is missing"),
        (lambda: read("one_of", ("a", "b"), x="c"), "file.yaml: x='c' is not supported: known here: a, b"),
        (lambda: read("only", 1, "why", x=2), "file.yaml: x=2 is not supported: why"),
        (lambda: read("only", True, "why", x=1), "file.yaml: x=1 is not supported: why"),
        (lambda: read("table", x=3), "file.yaml.x is 3; expected a table of options"),
        (lambda: Options({"x": 1, "y": None}, "file.yaml").finish(), "file.yaml: unknown options x=1, y=None"),
        (lambda: Options({"target": "A", "z": 0}, "file.yaml").target(), "file.yaml: unknown options z=0"),
    ],
)
def test_messages(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        act()


def test_an_option_is_taken_once_and_defaults_are_checked_too() -> None:
    options = Options({"x": 1, "y": "ignored"}, "file.yaml")
    assert "x" in options and options.whole("x") == 1 and "x" not in options
    assert options.whole("x", 7) == 7
    options.only("z", None, "why")
    options.ignore("y", "absent")
    options.finish()


def test_a_target_comes_with_its_parameters() -> None:
    target, params = Options({"target": "a.B", "params": {"n": 2}}, "file.yaml").target()
    assert (target, params.where, params.whole("n")) == ("a.B", "file.yaml.params", 2)
    Options({"target": "a.B"}, "file.yaml").target()[1].finish()
