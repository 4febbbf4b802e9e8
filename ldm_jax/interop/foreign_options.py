"""The options of another system's configuration, taken one by one until none is left.

An option is translated, or has a value that changes nothing, or is bookkeeping; any other is refused by name. What
nobody asked for is not known and refused too: a model that is read without one of its options is another model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ldm_jax.errors import UserError

T = TypeVar("T")

_REQUIRED: Any = object()


def refusal(where: str, name: str, value: Any, remedy: str) -> UserError:
    """The error for an option that cannot be used: `where` is the file, `remedy` says what can."""
    return UserError(f"{where}: {name}={value!r} is not supported; {remedy}")


def build(config: Callable[..., T], fields: Mapping[str, Any], where: str) -> T:
    """Our configuration; its own complaints begin with the file.

    Raises:
        UserError: the fields do not go together.
    """
    try:
        return config(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


class Options:
    """A table of options and the place where it was found; every one has to be used before `finish`.

    A method that takes an option returns `default`, which has to be of the same kind, where it is not given, and
    raises a UserError where it is missing without a default, or of another kind.
    """

    def __init__(self, values: Any, where: str) -> None:
        """Take the table `values`, which messages call `where`.

        Raises:
            UserError: it is no table.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{where} is {values!r}; expected a table of options")
        self.where = where
        self._left = dict(values)

    @property
    def left(self) -> tuple[str, ...]:
        """Names of the options that nobody has used yet."""
        return tuple(self._left)

    def refused(self, name: str, value: Any, remedy: str) -> UserError:
        """The error for an option with a value that cannot be used."""
        return refusal(self.where, name, value, remedy)

    # --- one option of a kind ---

    def raw(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value as it is written."""
        if default is _REQUIRED and name not in self._left:
            raise UserError(f"{self.where}: {name} is missing")
        return self._left.pop(name, default)

    def whole(self, name: str, default: Any = _REQUIRED) -> int:
        """A whole number."""
        return self._checked(name, default, _is_whole, "a whole number")

    def positive(self, name: str, default: Any = _REQUIRED) -> int:
        """A size."""
        value = self.whole(name, default)
        if value < 1:
            raise self.refused(name, value, "it has to be at least 1")
        return value

    def whole_or_none(self, name: str, default: int | None = None) -> int | None:
        """A whole number, or nothing."""
        return self._checked(name, default, lambda x: x is None or _is_whole(x), "a whole number or null")

    def wholes(self, name: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers."""
        return tuple(self._checked(name, default, _are_whole, "a list of whole numbers"))

    def wholes_or_none(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or nothing."""
        return None if self._left.get(name) is None and self.raw(name, None) is None else self.wholes(name)

    def whole_or_wholes(self, name: str, default: Any = _REQUIRED) -> int | tuple[int, ...]:
        """A whole number or a list of them."""
        kind = "a whole number or a list of them"
        value = self._checked(name, default, lambda x: _is_whole(x) or _are_whole(x), kind)
        return value if _is_whole(value) else tuple(value)

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A number."""
        return float(self._checked(name, default, lambda x: _is_whole(x) or isinstance(x, float), "a number"))

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        return self._checked(name, default, lambda x: isinstance(x, bool), "true or false")

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """A text."""
        return self._checked(name, default, lambda x: isinstance(x, str), "a text")

    def entries(self, name: str) -> list[Any]:
        """A list."""
        return self._checked(name, _REQUIRED, lambda x: isinstance(x, list), "a list")

    def table_or_none(self, name: str) -> dict[str, Any] | None:
        """A table of options as it is written, or nothing."""
        return self._checked(name, None, lambda x: x is None or isinstance(x, dict), "a table of options or null")

    def table(self, name: str) -> "Options":
        """A table of options inside this one."""
        return Options(self.raw(name), f"{self.where}.{name}")

    def target(self) -> tuple[str, "Options"]:
        """The class that this table names under `target`, and the options that it has for it under `params`.

        Raises:
            UserError: there is more in the table.
        """
        name, params = self.raw("target"), self.raw("params", {})
        self.finish()
        return str(name), Options({} if params is None else params, f"{self.where}.params")

    # --- one option of few values ---

    def choose(self, name: str, choices: Mapping[Any, T] | Iterable[T], default: Any = _REQUIRED) -> T:
        """What an option means that has few values: itself, or what a table says."""
        value = self.raw(name, default)
        meanings = choices if isinstance(choices, Mapping) else {choice: choice for choice in choices}
        for choice, meaning in meanings.items():
            if _same(choice, value):
                return meaning
        raise self.refused(name, value, f"use {' or '.join(map(repr, meanings))}")

    def only(self, name: str, *values: Any, because: str | None = None) -> None:
        """Accept an option only at one of the values that change nothing, of which the first is its default.

        Raises:
            UserError: it has another; `because` says why that is not supported.
        """
        found = self.raw(name, values[0])
        if not any(_same(value, found) for value in values):
            raise self.refused(name, found, because or f"only {' and '.join(map(repr, values))} can be imported")

    def ignore(self, *names: str) -> None:
        """Accept options that never change what the model computes."""
        for name in names:
            self.raw(name, None)

    # --- the end ---

    def finish(self) -> None:
        """Nothing may be left.

        Raises:
            UserError: options that are not known; every one is named.
        """
        if self._left:
            listing = ", ".join(f"{name}={value!r}" for name, value in self._left.items())
            raise UserError(f"{self.where}: {listing} is not supported; no such option of this model is known")

    def build(self, config: Callable[..., T], **fields: Any) -> T:
        """Our configuration, when all options have been used; its own complaints begin with the file.

        Raises:
            UserError: an option is left, or the fields do not go together.
        """
        self.finish()
        return build(config, fields, self.where)

    def _checked(self, name: str, default: Any, is_right: Callable[[Any], bool], kind: str) -> Any:
        value = self.raw(name, default)
        if not is_right(value):
            raise self.refused(name, value, f"it has to be {kind}")
        return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_whole(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_whole, value))


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same: 1 is not true."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
