"""What a compiler says of a step, as a record that can be kept."""

from dataclasses import dataclass
from typing import Any

from ldm_jax.planning.collectives import Collective


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one chip. Without `temporaries` the compiler gave up, and `needed` of `available` is its reason."""

    arguments: int
    temporaries: int | None = None
    outputs: int | None = None
    aliased: int | None = None
    """Bytes of outputs that lie where arguments were."""
    needed: int | None = None
    available: int | None = None

    @property
    def peak(self) -> int | None:
        """Upper bound of what is in use at once; None if the compiler gave up without telling."""
        if self.temporaries is None or self.outputs is None or self.aliased is None:
            return self.needed
        return self.arguments + self.temporaries + self.outputs - self.aliased


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """What a compiler says of a step, for one chip."""

    memory: Memory
    bytes_accessed: int | None
    """Bytes moved to and from its memory in one step."""
    bytes_source: str
    """Where that number comes from."""
    collectives: tuple[Collective, ...]
    date: str
    """When it was compiled."""
    lower_seconds: float
    compile_seconds: float
    """Time that the compiler took here."""
    compile_cpu_seconds: float


def restore_compiled(values: dict[str, Any]) -> CompiledStep:
    """Inverse of `dataclasses.asdict`, also through JSON."""
    collectives = tuple(Collective(**{**each, "axes": tuple(each["axes"])}) for each in values["collectives"])
    return CompiledStep(**{**values, "memory": Memory(**values["memory"]), "collectives": collectives})
