"""What came out of making something again, beside what had come out before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ldm_jax.files.places import Place
from ldm_jax.manifest import Manifest


@dataclass(frozen=True)
class Compared:
    """One result twice; equal values are the same result."""

    name: str
    was: Any
    now: Any
    note: str = ""
    """How far apart they are, where that can be said."""

    @property
    def is_same(self) -> bool:
        """Whether they are equal to the bit."""
        return self.was == self.now


@dataclass(frozen=True)
class Again:
    """Something made again: where, in which circumstances, and with what results."""

    out: Place
    manifest: Manifest
    results: Sequence[Compared]

    @property
    def is_same(self) -> bool:
        """Whether all results are."""
        return all(result.is_same for result in self.results)


def as_text(again: Again, changed: Sequence[str]) -> str:
    """For people; `changed` are the circumstances that differ. Equal results are counted, others shown."""
    return "\n".join(_lines(again, changed))


def _lines(again: Again, changed: Sequence[str]) -> Iterator[str]:
    yield f"made again in {again.out}"
    yield f"circumstances: {len(changed)} differ" if changed else "circumstances: the same"
    yield from (f"  {line}" for line in changed)
    different = [result for result in again.results if not result.is_same]
    total = len(again.results)
    if not different:
        yield f"results: the same, all {total} to the bit"
    else:
        yield f"results: {len(different)} of {total} differ"
        yield from (f"  {_difference(result)}" for result in different)


def _difference(result: Compared) -> str:
    note = f" ({result.note})" if result.note else ""
    return f"{result.name}: {_shown(result.was)} -> {_shown(result.now)}{note}"


def _shown(value: Any) -> str:
    """Checksums by their first twelve digits."""
    is_checksum = isinstance(value, str) and len(value) == 64
    return value[:12] if is_checksum else "nothing" if value is None else str(value)


def as_record(again: Again, changed: Sequence[str]) -> dict[str, Any]:
    """For programs."""
    results = [vars(result) | {"same": result.is_same} for result in again.results]
    return {"out": str(again.out), "same": again.is_same, "circumstances": list(changed), "results": results}
