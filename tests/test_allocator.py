"""Settings of the C library's allocator: made once, where it has them, and never against the user's word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax import allocator

SCRIPT = """
import os, sys
from ldm_jax.allocator import tune_allocator
tune_allocator()
print(os.environ.get("GLIBC_TUNABLES", ""), sys.argv[1:])
"""
BOTH = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=6"


@pytest.fixture
def begun_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """Environments with which the program would have begun again: six cores, huge pages are given on request."""
    state = tmp_path / "enabled"
    state.write_text("always [madvise] never\n")
    monkeypatch.setattr(allocator, "_STATE", state)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: environments.append(environment))
    return environments


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ("", BOTH),
        ("glibc.malloc.arena_max=1", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0:glibc.malloc.arena_max=6"),
        ("glibc.malloc.perturb=1", f"glibc.malloc.perturb=1:{BOTH}"),
    ],
)
def test_what_is_not_set_is_set(
    begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, given: str, then: str
) -> None:
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    allocator.tune_allocator()
    assert [environment["GLIBC_TUNABLES"] for environment in begun_again] == [then]


def test_it_begins_again_but_once(begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    allocator.tune_allocator()
    lost = {name: value for name, value in begun_again[0].items() if name != "GLIBC_TUNABLES"}
    monkeypatch.setattr(os, "environ", lost)
    allocator.tune_allocator()
    assert len(begun_again) == 1


@pytest.mark.parametrize("value", ["0", "1"])
def test_what_the_environment_says_is_left(
    begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.arena_max=64:glibc.malloc.hugetlb={value}")
    allocator.tune_allocator()
    assert begun_again == []
    assert allocator.are_huge_pages_used() == (value == "1")


def test_the_older_variable_of_arenas_is_left(
    begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    allocator.tune_allocator()
    assert [environment["GLIBC_TUNABLES"] for environment in begun_again] == ["glibc.malloc.hugetlb=1"]


@pytest.mark.parametrize(
    ("state", "library", "then"),
    [
        ("[always] madvise never", "glibc 2.36", "glibc.malloc.arena_max=6"),
        ("", "glibc 2.36", "glibc.malloc.arena_max=6"),
        ("always [madvise] never", "glibc 2.31", "glibc.malloc.arena_max=6"),
        ("always [madvise] never", "", ""),
        ("always [madvise] never", "musl 1.2", ""),
    ],
)
def test_a_system_is_asked_for_what_it_has(
    begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, state: str, library: str, then: str
) -> None:
    allocator._STATE.write_text(state) if state else allocator._STATE.unlink()
    monkeypatch.setattr(os, "confstr", lambda name: library)
    allocator.tune_allocator()
    assert [environment["GLIBC_TUNABLES"] for environment in begun_again] == ([then] if then else [])


@pytest.mark.skipif(allocator._glibc() < (2, 26), reason="the C library of this system has no such settings")
def test_a_program_begins_again_with_its_arguments() -> None:
    unset = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", SCRIPT, "a b", "--flag"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.endswith(f"glibc.malloc.arena_max={os.cpu_count()} ['a b', '--flag']\n")
