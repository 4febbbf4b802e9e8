"""Compiling a step for a topology: memory, bytes and collectives, or what memory is missing."""

import datetime
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldm_jax.planning.collectives import find_collectives
from ldm_jax.planning.compiled import CompiledStep, Memory
from ldm_jax.planning.hlo import Program, parse_program
from ldm_jax.planning.topology import Topology
from ldm_jax.planning.traffic import estimate_bytes, has_loops, kernel_bytes

_SIZE = r"([\d.]+)([KMGT]?)"
_SHORTAGES = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE),
    re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_step(
    lowered: Any, arguments: int, mesh: Mesh, topology: Topology, options: dict[str, Any], lower_seconds: float
) -> CompiledStep:
    """Compile a lowered step, whose arguments take `arguments` bytes of a chip; too little memory is a result."""
    began, cpu = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile(compiler_options=options or None)
        memory, failure = _memory(compiled.memory_analysis()), None
    except RuntimeError as error:  # jax.errors.JaxRuntimeError
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled, failure = None, str(error)
        memory = shortage(failure, arguments)
    spent, spent_cpu = time.perf_counter() - began, time.process_time() - cpu
    accessed, source, collectives = None, "none: it was not compiled", ()
    if compiled is not None:
        program = parse_program(compiled.as_text())
        accessed, source = bytes_accessed(program, compiled.cost_analysis())
        sizes = {axis: int(size) for axis, size in mesh.shape.items()}
        collectives = tuple(find_collectives(program, sizes, topology.chip.group_size))
    return CompiledStep(
        memory=memory,
        bytes_accessed=accessed,
        bytes_source=source,
        collectives=collectives,
        date=datetime.date.today().isoformat(),
        lower_seconds=lower_seconds,
        compile_seconds=spent,
        compile_cpu_seconds=spent_cpu,
    )


def _memory(stats: Any) -> Memory:
    return Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
    )


def shortage(message: str, arguments: int) -> Memory:
    """What a RESOURCE_EXHAUSTED error of the TPU compiler says: bytes needed, and bytes there are."""
    for pattern in _SHORTAGES:
        if match := pattern.search(message):
            needed, available = (
                round(float(number) * _UNITS[unit.upper()]) for number, unit in (match.group(1, 2), match.group(3, 4))
            )
            if "temporaries" in pattern.pattern:
                needed += arguments
            return Memory(arguments=arguments, needed=needed, available=available)
    return Memory(arguments=arguments)


def bytes_accessed(program: Program, cost: Any) -> tuple[int, str]:
    """Bytes of memory traffic of one run, and where the number comes from.

    The compiler's own analysis (TPU) counts one turn of each loop: it is scaled as the estimate from the text is. Of
    Pallas kernels it counts nothing: their operands and results are added.
    """
    estimate = estimate_bytes(program)
    analysed = (cost or {}).get("bytes accessed")
    if not analysed or analysed <= 0:
        return estimate, "estimated from the compiled program's operands and results"
    source, total, kernels = "the compiler's cost analysis", float(analysed), kernel_bytes(program)
    if has_loops(program):
        turns = estimate / max(estimate_bytes(program, count_loops=False), 1)
        source += f", times {turns:.2f} for loops, which it counts once"
        total *= turns
    if kernels:
        source += f", and {kernels / 1e9:.1f} GB of Pallas kernels, which it does not count"
    return int(total) + kernels, source


def argument_bytes(arguments: Any) -> int:
    """Bytes that arguments take on each chip: abstract ones, arrays and numbers of Python."""

    def size(leaf: Any) -> int:
        shape, placement = np.shape(leaf), getattr(leaf, "sharding", None)
        shape = shape if placement is None else placement.shard_shape(shape)
        return math.prod(shape) * jnp.result_type(leaf).itemsize

    return sum(map(size, jax.tree.leaves(arguments)))
