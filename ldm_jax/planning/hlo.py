"""A compiled program as text, read: its computations, their instructions, and how often each of them runs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|body|condition|branch_computations|to_apply|true_computation|false_computation)=")
_INDEX = re.compile(r"\bindex=(\d+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    """Type of its result, with layouts."""
    arguments: str
    """What stands in its parentheses: operands, or the number of a parameter."""
    attributes: str
    """What follows the operands."""
    is_root: bool = False

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of its operands."""
        return tuple(_NAME.findall(self.arguments))

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of its result."""
        return shape_bytes(self.shape)

    @cached_property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations it refers to, by the name of the attribute."""
        found = {}
        for match in _CALLED.finditer(self.attributes):
            value = self.attributes[match.end() :]
            text = value[: value.index("}")] if value.startswith("{") else value.split(",")[0].split(" ")[0]
            found[match[1]] = tuple(name.strip(" %{}") for name in text.split(","))
        return found


@dataclass
class Program:
    """A module of HLO."""

    entry: str
    computations: dict[str, dict[str, Instruction]] = field(default_factory=dict)
    """Instructions by name, of each computation by name."""

    def runs(self, *, into_fusions: bool) -> Iterator[tuple[str, Instruction, int]]:
        """Every instruction that runs, with the name of its computation and how often it does.

        `into_fusions` also enters what was fused, and what runs beside the program (`async-start`).
        """
        yield from self._runs_of(self.entry, 1, into_fusions)

    def _runs_of(self, computation: str, times: int, into_fusions: bool) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations.get(computation, {}).values():
            yield computation, instruction, times
            inner = times * (self._trip_count(instruction) if instruction.opcode == "while" else 1)
            for attribute, names in instruction.calls.items():
                if attribute == "to_apply" and instruction.opcode != "call":
                    continue  # the scalar function of a reduction
                if attribute == "calls" and instruction.opcode == "fusion" and not into_fusions:
                    continue
                for name in names:
                    yield from self._runs_of(name, inner, into_fusions)

    def _trip_count(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler says, or by bound and stride of a counter from 0; else once."""
        if match := _TRIP_COUNT.search(loop.attributes):
            return int(match[1])
        for condition, body in zip(loop.calls.get("condition", ()), loop.calls.get("body", ()), strict=True):
            if (bound := self._bound(condition)) is not None:
                return -(-bound // self._stride(condition, body))
        return 1

    def _stride(self, condition: str, body: str) -> int:
        """By how much a turn moves the counter that a condition looks at; more than 1 where loops were unrolled."""
        looked_at = {_index(each) for each in self.computations.get(condition, {}).values()}
        inside = self.computations.get(body, {})
        root = next((instruction for instruction in inside.values() if instruction.is_root), None)
        for index, name in enumerate(root.operands if root is not None else ()):
            moved = inside.get(name)
            if index not in looked_at or moved is None or moved.opcode != "add":
                continue
            by = [inside[operand] for operand in moved.operands if operand in inside]
            strides = [int(each.arguments) for each in by if each.opcode == "constant" and each.arguments.isdecimal()]
            if any(_index(each) == index for each in by) and strides:
                return max(strides[0], 1)
        return 1

    def _bound(self, condition: str) -> int | None:
        """The constant with which a condition compares its counter (`counter < constant`)."""
        computation = self.computations.get(condition, {})
        for instruction in computation.values():
            inner = [self._bound(name) for name in instruction.calls.get("calls", ())]
            if found := next((bound for bound in inner if bound is not None), None):
                return found
            last = computation.get(instruction.operands[-1]) if instruction.operands else None
            is_bound = instruction.opcode == "compare" and "direction=LT" in instruction.attributes
            if is_bound and last is not None and last.opcode == "constant" and last.arguments.isdecimal():
                return int(last.arguments)
        return None


def _index(instruction: Instruction) -> int | None:
    """Which element of a tuple an instruction takes; None if it takes none."""
    match = _INDEX.search(instruction.attributes) if instruction.opcode == "get-tuple-element" else None
    return int(match[1]) if match else None


def parse_program(text: str) -> Program:
    """Read the text of a compiled program (`compiled.as_text()`)."""
    program, current = Program(""), None
    for line in text.splitlines():
        if (match := _INSTRUCTION.match(line)) and current is not None:
            instruction = _instruction(match[2], match[3], is_root=bool(match[1]))
            current[instruction.name] = instruction
        elif match := _COMPUTATION.match(line):
            current = program.computations.setdefault(match[2], {})
            program.entry = match[2] if match[1] else program.entry
    return program


def _instruction(name: str, rest: str, *, is_root: bool) -> Instruction:
    shape, rest = _split_shape(rest)
    match = _OPCODE.match(rest)
    opcode = match[1] if match else ""
    begin = match.end() if match else 0
    end = begin + _closing(rest[begin:])
    return Instruction(name, opcode, shape, rest[begin:end], rest[end:], is_root)


def _split_shape(rest: str) -> tuple[str, str]:
    """The type at the start of a line, which is a tuple in parentheses or one word, and what follows."""
    end = _closing(rest[1:]) + 2 if rest.startswith("(") else rest.index(" ")
    return rest[:end], rest[end:].lstrip()


def _closing(text: str) -> int:
    """Position of the parenthesis that closes one opened before `text`."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def shape_bytes(shape: str) -> int:
    """Bytes of a type, all arrays of a tuple together, without the padding of tiles."""
    return sum(
        -(-math.prod(int(size) for size in sizes.split(",") if size) * _bits(kind) // 8)
        for kind, sizes in _ARRAY.findall(shape)
    )


def _bits(kind: str) -> int:
    """Bits of an element: of s32, bf16, f8e4m3fn, u4, pred."""
    if kind == "token":
        return 0
    digits = re.match(r"[a-z]+(\d+)", kind)
    return int(digits[1]) if digits else 8
