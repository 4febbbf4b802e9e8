"""Configurations as JSON: saved, restored and compared."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from typing import Any, Literal

from ldm_jax.config import (
    adversarial,
    autoencoder,
    classifier,
    conditioning,
    data,
    denoiser,
    diffusion,
    distributed,
    experiment,
    first_stage,
    given,
    mesh,
    perceptual,
    sampling,
    scoring,
    training,
)
from ldm_jax.config.experiment import Experiment
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place

_MODELS = (autoencoder, denoiser, conditioning, diffusion)
_STAGES = (training, adversarial, perceptual, first_stage, given, classifier, sampling, scoring)
_MODULES = (data, *_MODELS, *_STAGES, mesh, distributed, experiment)
_KINDS = {name: kind for module in _MODULES for name, kind in vars(module).items() if dataclasses.is_dataclass(kind)}


def to_dict(config: Any) -> Any:
    """The configuration as plain JSON values; every dataclass carries its class name under `type`."""
    if dataclasses.is_dataclass(config):
        values = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **values}
    return list(config) if isinstance(config, tuple) else config


def from_dict(values: Any) -> Any:
    """Inverse of `to_dict`.

    Raises:
        UserError: a class or a field is not known to this version.
    """
    if isinstance(values, list):
        return tuple(from_dict(v) for v in values)
    if not isinstance(values, dict):
        return values
    name = values.get("type", "")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"the saved configuration holds an unknown type {values.get('type')!r}")
    known = field_types(kind)
    unknown = sorted(set(values) - set(known) - {"type"})
    if unknown:
        raise UserError(f"the saved {kind.__name__} has unknown fields {unknown}; known: {sorted(known)}")
    fields = {key: from_dict(value) for key, value in values.items() if key != "type"}
    for key, value in fields.items():
        if not _is_a(value, known[key]):
            raise UserError(f"the saved {kind.__name__} has {key}={value!r}, which is not {_named(known[key])}")
    return kind(**fields)


def check_types(config: Any) -> None:
    """Refuse a configuration, made by a file of Python or of JSON, with a value that is not of its field's type.

    Raises:
        UserError: the field, its value, and the type.
    """
    for name, hint in field_types(type(config)).items():
        value = getattr(config, name)
        if not _is_a(value, hint):
            raise UserError(f"{type(config).__name__}.{name}={value!r} must be {_named(hint)}")
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                check_types(part)


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        wanted = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[-1] is ... else arguments
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(_is_a, value, wanted))
    if arguments:
        return any(_is_a(value, choice) for choice in arguments)
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else re.sub(r"\b(typing|ldm_jax\.config\.\w+)\.", "", str(hint))


def save_experiment(config: Experiment, path: Place) -> None:
    """Write the resolved experiment as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=1) + "\n")


def restore_experiment(path: Place) -> Experiment:
    """Read what `save_experiment` wrote.

    Raises:
        UserError: the file is missing, is not JSON, or does not fit this version.
    """
    try:
        config = from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist: {path.parent} is not a run folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or train into another folder") from None
    if not isinstance(config, Experiment):
        raise UserError(f"{path} holds a {type(config).__name__}, not an Experiment")
    return config


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Fields that decide the result and differ, as lines `name: old -> new`; how a run is executed is left out."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        if old != new:
            yield f"{prefix}: {old!r} -> {new!r}"
        return
    for f in dataclasses.fields(old):
        if f.metadata.get("identity", True):
            name = f"{prefix}.{f.name}" if prefix else f.name
            yield from differences(getattr(old, f.name), getattr(new, f.name), name)


def field_types(kind: type) -> dict[str, Any]:
    """Resolved types of the fields of a configuration class."""
    return typing.get_type_hints(kind)
