"""JSON files of other systems: read so that a fault names the file, and written as they write them."""

import json
from pathlib import Path
from typing import Any

from ldm_jax.errors import UserError
from ldm_jax.files.places import Place


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError for what is none, or is nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Place) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file is missing, is not JSON, or holds something else than an object.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); is the folder a complete model?") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore it from a copy") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__} where an object of options belongs")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object, with the folder of the file; raises OSError where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")
