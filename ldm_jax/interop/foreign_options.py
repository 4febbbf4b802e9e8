"""The options of a foreign configuration, read strictly.

Each option is translated, or stands at the value that changes nothing, or is bookkeeping; any other is refused by name.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ldm_jax.errors import UserError

T = TypeVar("T")

_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a table of options",
    list: "a list",
}


class Options:
    """The options of one configuration; every one has to be used before `finish`."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """Read `values`; `where` names them in messages."""
        self.where = where
        self._left = dict(values)

    def refuse(self, name: str, value: Any, remedy: str) -> UserError:
        """The error for an option with a value that cannot be used."""
        return UserError(f"{self.where}: {name}={value!r} is not supported; {remedy}")

    def take(self, name: str, kind: Callable[..., T], default: T) -> T:
        """An option of the type `kind`, or `default` where it is not given.

        Raises:
            UserError: it is of another type.
        """
        value = self._left.pop(name, default)
        if not _is_a(value, kind):
            raise self.refuse(name, value, f"it has to be {_KINDS[kind]}")  # type: ignore[index]
        return kind(value)

    def take_or_none(self, name: str, kind: Callable[..., T], default: T | None) -> T | None:
        """An option that may also be null.

        Raises:
            UserError: it is of another type.
        """
        if self._left.get(name, default) is None:
            self._left.pop(name, None)
            return None
        return self.take(name, kind, default)  # type: ignore[arg-type]

    def positive(self, name: str, default: int) -> int:
        """A size.

        Raises:
            UserError: it is not a whole number of at least one.
        """
        value = self.take(name, int, default)
        if value < 1:
            raise self.refuse(name, value, "it has to be at least 1")
        return value

    def choose(self, name: str, choices: Mapping[Any, T], default: Any) -> T:
        """What an option means that has few values.

        Raises:
            UserError: it has another value.
        """
        value = self._left.pop(name, default)
        try:
            return choices[value]
        except (KeyError, TypeError):
            raise self.refuse(name, value, f"use {' or '.join(map(repr, choices))}") from None

    def neutral(self, name: str, *values: Any) -> None:
        """Accept an option only at one of the values that change nothing.

        Raises:
            UserError: it has another value.
        """
        value = self._left.pop(name, values[0])
        if value not in values:
            raise self.refuse(name, value, f"only {' and '.join(map(repr, values))} can be imported")

    def skip(self, names: Iterable[str]) -> None:
        """Accept options that never change what the model computes."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse what is left, apart from names with an underscore in front, which are bookkeeping.

        Raises:
            UserError: an option is left.
        """
        for name, value in self._left.items():
            if not name.startswith("_"):
                raise self.refuse(name, value, "no such option of this model is known")

    def build(self, config: Callable[..., T], **fields: Any) -> T:
        """Our configuration, when all options have been used; its own complaints begin with the file.

        Raises:
            UserError: an option is left, or the fields do not go together.
        """
        self.finish()
        try:
            return config(**fields)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None


def _is_a(value: Any, kind: Callable[..., Any]) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))  # type: ignore[arg-type]
