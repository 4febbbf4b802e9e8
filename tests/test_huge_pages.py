"""Huge pages: asked for once, where the system gives them on request, and never against the user's word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax import huge_pages

SCRIPT = """
import os, sys
from ldm_jax.huge_pages import use_huge_pages
use_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", ""), sys.argv[1:])
"""


@pytest.fixture
def begun_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """Environments with which the program would have begun again, on a system that gives huge pages on request."""
    state = tmp_path / "enabled"
    state.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "_STATE", state)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: environments.append(environment))
    return environments


def test_they_are_asked_for_beside_what_else_is_set(
    begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    huge_pages.use_huge_pages()
    assert begun_again[-1]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    huge_pages.use_huge_pages()
    assert begun_again[-1]["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("value", ["0", "1"])
def test_what_the_environment_says_is_left(
    begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.hugetlb={value}")
    huge_pages.use_huge_pages()
    assert begun_again == []
    assert huge_pages.are_huge_pages_used() == (value == "1")


@pytest.mark.parametrize(("state", "library"), [("[always] madvise never", "glibc 2.36"), ("", "glibc 2.31"), ("", "")])
def test_other_systems_are_left_alone(
    begun_again: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, state: str, library: str
) -> None:
    if state:
        huge_pages._STATE.write_text(state)
    monkeypatch.setattr(os, "confstr", lambda name: library)
    huge_pages.use_huge_pages()
    assert begun_again == []


@pytest.mark.skipif(not huge_pages._are_given_on_request(), reason="this system does not give huge pages on request")
def test_a_program_begins_again_with_its_arguments() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", SCRIPT, "a b", "--flag"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "glibc.malloc.hugetlb=1 ['a b', '--flag']\n"
