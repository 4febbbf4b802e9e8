"""Experiments by name: those that come with the project, and those in a user's file."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import inspect
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from ldm_jax.config.experiment import Experiment
from ldm_jax.config.saved import check_types
from ldm_jax.errors import UserError


def _config_folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    shipped = package / "configs"  # a wheel carries the experiments inside the package
    return shipped if shipped.is_dir() else package.parent / "configs"


_Found: TypeAlias = tuple[ModuleType, str | None]
"""The file of an experiment, executed, and the variant of its family that is meant."""


@functools.cache
def _shipped() -> dict[str, _Found]:
    """All shipped experiments: NAME has a file of its own, FAMILY/VARIANT is in one of the files of a folder."""
    folder, found = _config_folder(), dict[str, _Found]()
    for path in folder.glob("[!_]*.py"):
        found[path.stem] = _load_file(path), None
    for path in folder.glob("[!_]*/[!_]*.py"):
        module = _load_file(path)
        found |= {f"{path.parent.name}/{variant}": (module, variant) for variant in module.VARIANTS}
    return found


def experiment_names() -> list[str]:
    """Names of the shipped experiments."""
    return sorted(_shipped())


def load_experiment(name: str) -> Experiment:
    """Load a shipped experiment by name, or from any Python file by its path, FILE.py or FILE.py:VARIANT.

    A file defines `get_config()`; that of a family defines `VARIANTS`, the description of each variant by its name, and
    `get_config(variant)`.

    Raises:
        UserError: there is no such experiment, in which case the message offers the nearest names, or a value of it is
            of the wrong type.
    """
    module, variant = _find(name)
    with _blamed_on(Path(module.__file__ or name)):
        experiment = module.get_config() if variant is None else module.get_config(variant)
    if not isinstance(experiment, Experiment):
        raise UserError(f"get_config() of {name} returns {experiment!r}, not an Experiment")
    try:
        check_types(experiment)
    except UserError as error:
        raise UserError(f"get_config() of {name}: {error}") from None
    return experiment


def describe_experiment(name: str) -> str:
    """What an experiment says of itself: the docstring of its file, or its family's description of the variant.

    Raises:
        UserError: there is no such experiment.
    """
    module, variant = _find(name)
    return inspect.cleandoc((module.__doc__ or "") if variant is None else module.VARIANTS[variant])


def _find(name: str) -> _Found:
    file = name.partition(".py:")[0] + ".py" if ".py:" in name else name
    if file.endswith(".py") and not Path(file).is_file():
        raise UserError(f"{file} is no file; name one with a get_config(), or an experiment: {', '.join(_shipped())}")
    known = _in_file(file) if file.endswith(".py") else _shipped()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"unknown experiment '{name}': {hint}known experiments: {', '.join(sorted(known))}")
    return known[name]


def _in_file(file: str) -> dict[str, _Found]:
    module = _load_file(Path(file))
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} defines no get_config(); an experiment file returns an Experiment from it")
    if not hasattr(module, "VARIANTS"):
        return {file: (module, None)}
    if not isinstance(module.VARIANTS, dict):
        raise UserError(
            f"{file} has VARIANTS={module.VARIANTS!r}; give a dict of each variant's description by its name"
        )
    return {f"{file}:{variant}": (module, variant) for variant in module.VARIANTS}


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ldm_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _blamed_on(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Errors of an experiment's file, which a user has written, with the file and the line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
        number = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        line = "" if number is None else f" line {number}"
        raise UserError(f"{path}{line}: {type(error).__name__}: {error}") from error
