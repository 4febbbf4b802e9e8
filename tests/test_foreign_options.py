"""Options of other systems: every one is asked for, of the right kind, and refused by name otherwise."""

from collections.abc import Callable
from typing import Any

import pytest

from ldm_jax.config import ClipVisionConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options


def options(**values: Any) -> Options:
    return Options(values, "config.json")


def read(method: str, *arguments: Any, **values: Any) -> Any:
    return getattr(options(**values), method)("x", *arguments)


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("whole", 3, 3),
        ("positive", 1, 1),
        ("whole_or_none", None, None),
        ("whole_or_none", 4, 4),
        ("wholes", [1, 2], (1, 2)),
        ("wholes_or_none", None, None),
        ("wholes_or_none", [4], (4,)),
        ("whole_or_wholes", [1, 2], (1, 2)),
        ("whole_or_wholes", 2, 2),
        ("number", 2, 2.0),
        ("number", 1e-4, 1e-4),
        ("flag", False, False),
        ("text", "a", "a"),
        ("entries", [1, {}], [1, {}]),
        ("table_or_none", {"a": 1}, {"a": 1}),
        ("table_or_none", None, None),
    ],
)
def test_values_of_the_right_kind_are_taken(method: str, value: Any, expected: Any) -> None:
    found = read(method, x=value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("method", "value", "kind"),
    [
        ("whole", True, "a whole number"),
        ("whole", 2.0, "a whole number"),
        ("whole", "3", "a whole number"),
        ("positive", None, "a whole number"),
        ("positive", 0, "at least 1"),
        ("whole_or_none", "a", "a whole number or null"),
        ("wholes", [1, 2.5], "a list of whole numbers"),
        ("wholes_or_none", 3, "a list of whole numbers"),
        ("whole_or_wholes", "ab", "a whole number or a list of them"),
        ("number", "ab", "a number"),
        ("number", "1e-4", "a number"),
        ("number", None, "a number"),
        ("number", True, "a number"),
        ("flag", 1, "true or false"),
        ("text", 1, "a text"),
        ("entries", {"a": 1}, "a list"),
        ("table_or_none", [], "a table of options or null"),
    ],
)
def test_values_of_another_kind_are_refused(method: str, value: Any, kind: str) -> None:
    with pytest.raises(UserError, match=r"^config.json: x=.* is not supported; it has to be " + kind + "$"):
        read(method, x=value)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Options([1], "config.json"), r"config.json is \[1\]; expected a table of options"),
        (lambda: read("whole"), "config.json: x is missing"),
        (lambda: read("table", x=3), "config.json.x is 3; expected a table of options"),
        (
            lambda: read("choose", {"a": 1, "b": 2}, x="c"),
            "config.json: x='c' is not supported; use 'a' or 'b'",
        ),
        (lambda: read("choose", ("a",), x=["a"]), r"config.json: x=\['a'\] is not supported; use 'a'"),
        (lambda: read("choose", (True,), x=1), "config.json: x=1 is not supported; use True"),
        (lambda: options(x=2).only("x", 1, because="why"), "config.json: x=2 is not supported; why"),
        (lambda: options(x=1).only("x", True, because="why"), "config.json: x=1 is not supported; why"),
        (lambda: read("only", 0.0, x=0.1), "config.json: x=0.1 is not supported; only 0.0 can be imported"),
        (lambda: read("only", {}, None, x=1), "config.json: x=1 is not supported; only {} and None can be imported"),
        (
            lambda: options(x=1, _y=None).finish(),
            "config.json: x=1, _y=None is not supported; no such option of this model is known",
        ),
        (
            lambda: options(x=1).build(ClipVisionConfig),
            "config.json: x=1 is not supported; no such option of this mo.*",
        ),
        (
            lambda: options(target="A", z=0).target(),
            "config.json: z=0 is not supported; no such option of this model is known",
        ),
        (
            lambda: options().build(ClipVisionConfig, width=8, num_heads=3),
            "config.json: ClipVisionConfig.num_heads=3 does not divide width=8; nearest that does: .*",
        ),
    ],
)
def test_messages(act: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        act()


def test_an_option_is_taken_once_and_defaults_are_checked_too() -> None:
    given = options(x=1, y="ignored", z=None)
    assert given.left == ("x", "y", "z") and given.whole("x") == 1 and given.left == ("y", "z")
    assert given.whole("x", 7) == 7 and given.whole_or_none("x", 4) == 4
    assert given.choose("kind", {"a": 1, "b": 2}, "b") == 2
    with pytest.raises(UserError, match="x=None is not supported; it has to be a whole number"):
        given.whole("x", None)
    given.only("z", 0, None)
    given.ignore("y", "absent")
    given.finish()


def test_a_target_comes_with_its_parameters() -> None:
    target, params = options(target="a.B", params={"n": 2}).target()
    assert (target, params.where, params.whole("n")) == ("a.B", "config.json.params", 2)
    options(target="a.B").target()[1].finish()
