"""The map of the house holds: imports go one way, and nothing lies around outside the rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ldm_jax

PACKAGE = Path(ldm_jax.__file__).parent
ROOMS = (
    *(
        "errors",
        "allocator",
        "flops",
        "chips",
        "files",
        "manifest",
        "config",
        "rng",
        "sharding",
        "pictures",
        "progress",
        "data",
    ),
    *("nn", "autoencoder", "conditioning", "denoiser", "diffusion", "model", "training", "sampling", "interop"),
    *("latents", "evaluation", "planning", "benchmark", "experiment", "reproduction", "report", "cli"),
)
FORBIDDEN_PAIRS = {("diffusion", room) for room in ("denoiser", "autoencoder", "conditioning")}
FORBIDDEN_PACKAGES = {"tensorflow", "torch", "transformers", "diffusers"}
TORCH_SIDES = {
    PACKAGE / "interop" / "torch_layers.py": {"torch", "transformers", "diffusers"},
    PACKAGE / "benchmark" / "torch_side.py": {"torch", "diffusers"},
    PACKAGE / "benchmark" / "torch_trainer.py": {"torch", "diffusers"},
}
"""The files that import PyTorch: programs of their own, which are run to compare with and never imported."""
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "misc"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path, package: Path = PACKAGE) -> str:
    """First part of a module's name inside the package; empty for the package itself."""
    first = path.relative_to(package).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(source: str) -> Iterator[str]:
    """Absolute names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(source: str) -> set[str]:
    """Rooms of the package that a file imports."""
    names = (name.split(".") for name in imported_modules(source))
    return {parts[1] for parts in names if parts[0] == "ldm_jax" and len(parts) > 1}


def arrows_back(room: str, source: str) -> set[str]:
    """Imports of a file of `room` that point to a later room, or to one it must not know."""
    later = {other for other in imported_rooms(source) if ROOMS.index(other) > ROOMS.index(room)}
    return later | {other for other in imported_rooms(source) if (room, other) in FORBIDDEN_PAIRS}


def other_frameworks(source: str) -> set[str]:
    """Forbidden packages that a file imports."""
    return {name.split(".")[0] for name in imported_modules(source)} & FORBIDDEN_PACKAGES


def names_module(source: str, module: str) -> bool:
    """Whether a file imports a module, or something of it."""
    return any(f"{name}.".startswith(f"{module}.") for name in imported_modules(source))


def calls_of(source: str, name: str) -> list[int]:
    """Lines on which the function `name` is called."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_rooms_before_its_own(path: Path):
    room = room_of(path)
    if room:
        assert room in ROOMS, f"{room} is not on the map; add it to DESIGN.md and here"
        assert arrows_back(room, path.read_text()) == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_prints_nothing_and_imports_no_other_framework(path: Path):
    source = path.read_text()
    assert calls_of(source, "print") == [], "results go to stdout by name, everything else through the logger"
    if path not in TORCH_SIDES:
        assert other_frameworks(source) == set()


@pytest.mark.parametrize("path", TORCH_SIDES, ids=lambda path: path.stem)
def test_a_pytorch_side_is_a_program_of_its_own(path: Path):
    assert other_frameworks(path.read_text()) == TORCH_SIDES[path]
    assert imported_rooms(path.read_text()) == set()
    module = f"ldm_jax.{room_of(path)}.{path.stem}"
    assert [file for file in FILES if names_module(file.read_text(), module)] == []


def test_nothing_is_called_utils():
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert names & FORBIDDEN_NAMES == set()


def test_every_room_is_on_the_map():
    assert {room_of(path) for path in FILES} - {""} <= set(ROOMS)


# A test that cannot fail proves nothing: the checks above notice each offence.


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("data", "from ldm_jax.training import loop", {"training"}),
        ("data", "import ldm_jax.model", {"model"}),
        ("nn", "def f():\n    from ldm_jax.cli import main", {"cli"}),
        ("sampling", "from ldm_jax import evaluation, rng", {"evaluation"}),
        ("diffusion", "from ldm_jax.denoiser.unet import UNet", {"denoiser"}),
        ("diffusion", "from ldm_jax.nn.norm import GroupNorm\nfrom ldm_jax import config", set()),
    ],
)
def test_the_check_of_arrows_notices(room: str, source: str, expected: set[str]):
    assert arrows_back(room, source) == expected


def test_the_check_of_calls_notices():
    assert calls_of("x = 1\nprint(x)\nlog.print(x)", "print") == [2]


@pytest.mark.parametrize(
    "source",
    ["import ldm_jax.a.b", "from ldm_jax.a import b", "def f():\n    from ldm_jax.a.b import c"],
)
def test_the_check_of_the_pytorch_side_notices(source: str):
    assert names_module(source, "ldm_jax.a.b")
    assert not names_module(source, "ldm_jax.a.bc")


def test_the_check_of_frameworks_notices():
    assert other_frameworks("import torch.nn\ndef f():\n    from diffusers import a") == {"torch", "diffusers"}
