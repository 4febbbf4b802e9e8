"""A reader of pickles that builds plain data and runs nothing that the pickle names.

Python's own unpickler imports what a pickle names and calls it. This one is a small machine of its own: it keeps the
instructions that build numbers, strings and containers, looks up every name in a table given by the caller, and calls
nothing but what that table holds. Instructions are decoded by `pickletools`, which only parses.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from mmap import mmap
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from ldm_jax.errors import UserError
from ldm_jax.files.tensor_file import damaged

Name: TypeAlias = tuple[str, str]
"""Module and name of a global, as a pickle gives them."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle gives, never looked up in Python."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Inert:
    """An object of a class that is known to be harmless, of which nothing is kept."""

    of: Global

    def __str__(self) -> str:
        return str(self.of)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a pickle may name."""

    calls: Mapping[Name, Callable[..., Any]] = field(default_factory=dict)
    """What is called instead of each function or class."""
    constants: frozenset[Name] = frozenset()
    """Names that are only handed on, as `Global`."""
    inert: frozenset[Name] = frozenset()
    """Classes whose objects become `Inert`."""
    persistent: Callable[[Any], Any] | None = None
    """Makes an object from a persistent id; without it there may be none."""
    build: Callable[[Any, Any], None] | None = None
    """Gives an object its state, where it needs one."""


def read_pickle(path: Path, stream: BytesIO | mmap, vocabulary: Vocabulary) -> Any:
    """The object that a pickle describes; the stream is left behind it.

    Args:
        path: named in errors.
        stream: the pickle; reading beyond its end has to give less, not to fail.
        vocabulary: the names that are allowed.

    Raises:
        UserError: the pickle is damaged, names something else, or uses an instruction that plain data does not need.
    """
    machine = _Machine(path, vocabulary)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            machine.run(opcode.name, argument)
        return machine.pop()
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise damaged(path, f"its pickle makes no sense ({error or type(error).__name__})") from error


def refused(path: Path, what: str) -> UserError:
    """The error for a pickle that asks for more than plain data."""
    return UserError(
        f"{path} was not read: its pickle asks for {what}, which is neither tensor nor container, and nothing of it "
        "was run; get the weights as .safetensors, or, if you trust their origin, convert them with PyTorch"
    )


class _Machine:
    """Stack and memo of the reader."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        self.path = path
        self.vocabulary = vocabulary
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        """Follow one instruction."""
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _INSTRUCTIONS:
            _INSTRUCTIONS[opcode](self, argument)
        elif opcode == "INST":  # the only other one that carries a name, and a name tells more
            raise refused(self.path, str(Global(*argument.split(" ", 1))))
        else:
            raise refused(self.path, f"the instruction {opcode}")

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Inert):
            raise TypeError(f"a {type(target).__name__} takes no elements")
        if isinstance(target, list):
            target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Inert):
            raise TypeError(f"a {type(target).__name__} takes no keys")
        if isinstance(target, dict):
            target.update(pairs_of(items))

    def add_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise TypeError(f"a {type(target).__name__} is no set")
        target.update(plain_keys(items))

    def find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name is no string")
        found, key, known = Global(module, name), (module, name), self.vocabulary
        if key not in known.calls and key not in known.constants and key not in known.inert:
            raise refused(self.path, str(found))
        self.stack.append(found)

    def find_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.find(module, name)

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        call = self.vocabulary.calls.get((function.module, function.name)) if isinstance(function, Global) else None
        if call is None:
            raise refused(self.path, f"a call of {_named(function)}")
        if not isinstance(arguments, tuple):
            raise TypeError(f"a call of {function} has no arguments")
        self.stack.append(call(*arguments))

    def new(self, _: Any) -> None:
        """An object of a class; its arguments are of no use to one that keeps nothing."""
        _, cls = self.pop(), self.pop()
        if not isinstance(cls, Global) or (cls.module, cls.name) not in self.vocabulary.inert:
            raise refused(self.path, f"an object of {_named(cls)}")
        self.stack.append(Inert(cls))

    def build(self, _: Any) -> None:
        state = self.pop()
        if not isinstance(self.stack[-1], Inert):
            if self.vocabulary.build is None:
                raise refused(self.path, "the instruction BUILD")
            self.vocabulary.build(self.stack[-1], state)

    def persistent(self, _: Any) -> None:
        if self.vocabulary.persistent is None:
            raise refused(self.path, "the instruction BINPERSID")
        self.stack.append(self.vocabulary.persistent(self.pop()))


def _named(value: Any) -> str:
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"


def pairs_of(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values that follow each other."""
    if len(items) % 2:
        raise ValueError("a key lacks its value")
    return dict(zip(plain_keys(items[::2]), items[1::2], strict=True))


def plain_keys(keys: list[Any]) -> list[Any]:
    """The same keys, if all are scalars, names, or tuples of scalars: to hash what is nested deeper can end Python."""
    for key in keys:
        parts = key if isinstance(key, tuple) else (key, None)
        if not all(part is None or isinstance(part, str | bytes | int | float | Global) for part in parts):
            raise TypeError(f"a {type(key).__name__} is no plain key")
    return keys


_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
"""Instructions whose argument is what they push."""


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine, Any], None]:
    def push(machine: _Machine, _: Any) -> None:
        item = make(machine)  # first, for it may put another stack in place
        machine.stack.append(item)

    return push


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "NONE": _push(lambda machine: None),
    "NEWTRUE": _push(lambda machine: True),
    "NEWFALSE": _push(lambda machine: False),
    "EMPTY_LIST": _push(lambda machine: []),
    "EMPTY_DICT": _push(lambda machine: {}),
    "EMPTY_SET": _push(lambda machine: set()),
    "EMPTY_TUPLE": _push(lambda machine: ()),
    "LIST": _push(lambda machine: machine.pop_to_mark()),
    "DICT": _push(lambda machine: pairs_of(machine.pop_to_mark())),
    "TUPLE": _push(lambda machine: tuple(machine.pop_to_mark())),
    "FROZENSET": _push(lambda machine: frozenset(plain_keys(machine.pop_to_mark()))),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.pop_to_mark(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine.find(*argument.split(" ", 1)),
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
