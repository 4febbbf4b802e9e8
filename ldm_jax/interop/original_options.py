"""The options of another system's configuration, taken one by one until none is left.

An option is supported, or has the value that changes nothing here, or is refused by name. What nobody asked for is not
known and refused too: a model that is read without one of its options is another model.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ldm_jax.errors import UserError

_REQUIRED = object()


class Options:
    """A table of options and the place where it was found."""

    def __init__(self, values: Any, where: str) -> None:
        """Take the table `values`, which messages call `where`.

        Raises:
            UserError: it is no table.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{where} is {values!r}; expected a table of options")
        self.where = where
        self._left = dict(values)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def refused(self, name: str, value: Any, because: str) -> UserError:
        """The error that an option with this value is not supported, and why."""
        return UserError(f"{self.where}: {name}={value!r} is not supported: {because}")

    def raw(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of an option as it is written.

        Raises:
            UserError: it is not there and has no default.
        """
        if default is _REQUIRED and name not in self._left:
            raise UserError(f"{self.where}: {name} is missing")
        return self._left.pop(name, default)

    def whole(self, name: str, default: Any = _REQUIRED) -> int:
        """A whole number."""
        value = self.raw(name, default)
        return value if _is_whole(value) else self._expected(name, value, "a whole number")

    def whole_or_none(self, name: str) -> int | None:
        """A whole number, or nothing."""
        value = self.raw(name, None)
        return value if value is None or _is_whole(value) else self._expected(name, value, "a whole number or null")

    def wholes(self, name: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.raw(name, default)
        return tuple(value) if _are_whole(value) else self._expected(name, value, "a list of whole numbers")

    def wholes_or_none(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or nothing."""
        return None if self._left.get(name) is None and self.raw(name, None) is None else self.wholes(name)

    def whole_or_wholes(self, name: str, default: Any = _REQUIRED) -> int | tuple[int, ...]:
        """A whole number or a list of them."""
        value = self.raw(name, default)
        if _is_whole(value):
            return value
        return tuple(value) if _are_whole(value) else self._expected(name, value, "a whole number or a list of them")

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A number; YAML readers differ on `1e-4`, which some take for text."""
        value = self.raw(name, default)
        try:
            return float(value) if not isinstance(value, bool) else self._expected(name, value, "a number")
        except (TypeError, ValueError):
            return self._expected(name, value, "a number")

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self.raw(name, default)
        return value if isinstance(value, bool) else self._expected(name, value, "true or false")

    def one_of(self, name: str, choices: Iterable[Any], default: Any = _REQUIRED) -> Any:
        """One of the values that are supported."""
        value, known = self.raw(name, default), list(choices)
        if value not in known:
            raise self.refused(name, value, f"known here: {', '.join(map(str, known))}")
        return value

    def table(self, name: str) -> "Options":
        """A table of options inside this one."""
        return Options(self.raw(name), f"{self.where}.{name}")

    def target(self) -> tuple[str, "Options"]:
        """The class that this table names under `target`, and the options that it has for it under `params`."""
        name, params = self.raw("target"), self.raw("params", {})
        self.finish()
        return str(name), Options({} if params is None else params, f"{self.where}.params")

    def only(self, name: str, value: Any, because: str) -> None:
        """Accept an option that has just this value, also its default.

        Raises:
            UserError: it has another; `because` says why that is not supported.
        """
        found = self.raw(name, value)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise self.refused(name, found, because)

    def ignore(self, *names: str) -> None:
        """Options that change nothing here, whatever their value."""
        for name in names:
            self.raw(name, None)

    def finish(self) -> None:
        """Nothing may be left.

        Raises:
            UserError: options that are not known; every one is named.
        """
        if self._left:
            raise UserError(f"{self.where}: unknown options {', '.join(f'{k}={v!r}' for k, v in self._left.items())}")

    def _expected(self, name: str, value: Any, what: str) -> Any:
        raise UserError(f"{self.where}: {name}={value!r} must be {what}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_whole(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_whole, value))
