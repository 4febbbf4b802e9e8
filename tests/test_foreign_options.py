"""Options of foreign configurations: each is used, neutral or refused by name."""

from typing import Any

import pytest

from ldm_jax.config import ClipVisionConfig
from ldm_jax.errors import UserError
from ldm_jax.interop.foreign_options import Options


def options(**values: Any) -> Options:
    return Options(values, "config.json")


def test_options_are_taken_with_their_type_or_the_default() -> None:
    given = options(size=3, rate=1, name="x", flag=False, nothing=None, kind="a", quiet=0, _name_or_path="y")
    assert given.take("size", int, 5) == 3
    assert given.take("missing", int, 5) == 5
    rate = given.take("rate", float, 0.5)
    assert rate == 1.0 and isinstance(rate, float)
    assert given.take("name", str, "") == "x" and given.take("flag", bool, True) is False
    assert given.take_or_none("nothing", int, 4) is None and given.take_or_none("absent", int, 4) == 4
    assert given.choose("kind", {"a": 1, "b": 2}, "b") == 1 and given.choose("other", {"a": 1, "b": 2}, "b") == 2
    given.neutral("quiet", 0.0)
    given.neutral("quiet", 0.0)
    given.finish()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: options(size="3").take("size", int, 5),
            "config.json: size='3' is not supported; it has to be a whole number",
        ),
        (
            lambda: options(size=True).take("size", int, 5),
            "config.json: size=True is not supported; it has to be a whole number",
        ),
        (lambda: options(size=None).take("size", float, 5.0), "size=None is not supported; it has to be a number"),
        (lambda: options(flag=1).take("flag", bool, True), "flag=1 is not supported; it has to be true or false"),
        (lambda: options(size=0).positive("size", 5), "size=0 is not supported; it has to be at least 1"),
        (lambda: options(kind="c").choose("kind", {"a": 1, "b": 2}, "a"), "kind='c' is not supported; use 'a' or 'b'"),
        (lambda: options(kind=["a"]).choose("kind", {"a": 1}, "a"), r"kind=\['a'\] is not supported; use 'a'"),
        (
            lambda: options(rate=0.1).neutral("rate", 0.0),
            "rate=0.1 is not supported; only 0.0 can be imported",
        ),
        (lambda: options(new=1).finish(), "new=1 is not supported; no such option of this model is known"),
        (
            lambda: options(new=1).build(ClipVisionConfig),
            "new=1 is not supported; no such option of this model is known",
        ),
        (
            lambda: options().build(ClipVisionConfig, width=8, num_heads=3),
            "config.json: ClipVisionConfig.num_heads=3 does not divide width=8; nearest that does: ",
        ),
    ],
)
def test_what_is_refused_is_named(use, message: str) -> None:
    with pytest.raises(UserError, match=message):
        use()
