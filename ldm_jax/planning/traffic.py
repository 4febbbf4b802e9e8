"""Bytes that a compiled program moves to and from memory, estimated from its text.

(1) bytes = sum over the instructions that are not fused into others of what they read and write, loops as often as
    they run; of an operand that a fusion only slices, the slice; of one that it updates in place, the update
"""

from ldm_jax.planning.hlo import Instruction, Program, shape_bytes

_CONTROL = frozenset(("tuple", "get-tuple-element", "while", "conditional", "call", "after-all", "opt-barrier"))
_MADE_IN_PLACE = frozenset(("parameter", "constant", "bitcast", "iota", "partition-id", "replica-id"))
_FAST_MEMORY = "S(1)"
"""In a layout: kept in the memory on the chip."""
_KERNEL = 'custom_call_target="tpu_custom_call"'


def estimate_bytes(program: Program, *, count_loops: bool = True) -> int:
    """Bytes accessed by one run of a program (1); without `count_loops` each loop counts as one turn of it."""
    total = 0
    for name, instruction, times in program.runs(into_fusions=False):
        if instruction.opcode in _CONTROL | _MADE_IN_PLACE or instruction.opcode.endswith("-done"):
            continue
        total += (times if count_loops else 1) * _bytes(instruction, program, program.computations[name])
    return total


def kernel_bytes(program: Program) -> int:
    """Bytes that the Pallas kernels of a TPU's program read and write, each operand and result once.

    The compiler counts none for them. Counted as it counts all else: without the padding of tiles, by which an array
    with a short last axis takes more of the memory.
    """
    total = 0
    for name, instruction, times in program.runs(into_fusions=False):
        if instruction.opcode == "custom-call" and _KERNEL in instruction.attributes:
            operands = (program.computations[name].get(operand) for operand in instruction.operands)
            shapes = [instruction.shape, *(operand.shape for operand in operands if operand is not None)]
            total += times * sum(map(shape_bytes, shapes))
    return total


def has_loops(program: Program) -> bool:
    """Whether anything in a program runs more than once."""
    return any(times > 1 for _, _, times in program.runs(into_fusions=False))


def _bytes(instruction: Instruction, program: Program, computation: dict[str, Instruction]) -> int:
    operands = [computation.get(name) for name in instruction.operands]
    if instruction.opcode == "fusion":
        fused = program.computations.get(instruction.calls.get("calls", ("",))[0], {})
        return _fusion_bytes(instruction, fused, operands)
    if instruction.opcode == "dynamic-slice":
        return 2 * _slow_bytes(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _slow_bytes(operands[1])
    return _slow_bytes(instruction) + sum(map(_slow_bytes, operands))


def _slow_bytes(instruction: Instruction | None) -> int:
    """Bytes of a value that lies in the accelerator's memory."""
    return 0 if instruction is None or _FAST_MEMORY in instruction.shape else instruction.num_bytes


def _fusion_bytes(fusion: Instruction, fused: dict[str, Instruction], operands: list[Instruction | None]) -> int:
    parameters = {int(i.arguments): i.name for i in fused.values() if i.opcode == "parameter"}
    read = sum(_read_bytes(operand, parameters.get(number), fused) for number, operand in enumerate(operands))
    root = next((instruction for instruction in fused.values() if instruction.is_root), None)
    while root is not None and root.opcode == "bitcast":
        root = fused.get(root.operands[0])
    if root is not None and root.opcode == "dynamic-update-slice":
        return read + fused[root.operands[1]].num_bytes
    return read + _slow_bytes(fusion)


def _read_bytes(operand: Instruction | None, parameter: str | None, fused: dict[str, Instruction]) -> int:
    """Bytes that a fusion reads of an operand, which its computation calls `parameter`."""
    whole = _slow_bytes(operand)
    uses = [instruction for instruction in fused.values() if parameter in instruction.operands]
    parts = [_part(use, parameter, fused) for use in uses]
    if not whole or not parts or any(part is None for part in parts):
        return whole
    return min(whole, sum(part for part in parts if part is not None))


def _part(use: Instruction, parameter: str | None, fused: dict[str, Instruction]) -> int | None:
    """Bytes of a parameter that an instruction which takes only a part of it looks at; None if it takes all."""
    if use.operands[0] != parameter or parameter in use.operands[1:]:
        return None
    if use.opcode == "dynamic-slice":
        return use.num_bytes
    return 0 if use.opcode == "dynamic-update-slice" else None
