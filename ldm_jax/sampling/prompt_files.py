"""Files of prompts: one a line, or JSON lines with a negative prompt, a seed and a guidance scale of their own."""

from dataclasses import dataclass
from typing import Any

from ldm_jax.config import LARGEST
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place

_FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative": (str,),
    "seed": (int,),
    "guidance": (int, float),
}


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One line; what it leaves out is that of the command."""

    prompt: str
    negative: str | None = None
    seed: int | None = None
    guidance: float | None = None


def read_prompts(path: Place) -> list[PromptLine]:
    """The prompts of a file; empty lines are skipped. A `.jsonl` holds an object a line.

    Raises:
        UserError: the file cannot be read or holds no prompt, or a line is wrong, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--prompts {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"--prompts {path} is not text in UTF-8") from None
    is_json = path.suffix.lower() == ".jsonl"
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"--prompts {path} holds no prompt; write one a line")
    return [_from_json(path, number, line) if is_json else PromptLine(prompt=line) for number, line in numbered]


def _from_json(path: Place, number: int, line: str) -> PromptLine:
    try:
        values: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON ({error})") from None
    if not isinstance(values, dict) or "prompt" not in values:
        raise UserError(f'{path}, line {number} must be an object with a prompt, such as {{"prompt": "a red apple"}}')
    for name, value in values.items():
        if name not in _FIELDS:
            raise UserError(f"{path}, line {number} has an unknown field {name!r}; known: {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[name]) or isinstance(value, bool):
            raise UserError(f"{path}, line {number} has {name}={value!r}, which is no {_FIELDS[name][-1].__name__}")
        if not isinstance(value, str) and not 0 <= value <= LARGEST:
            raise UserError(f"{path}, line {number} has {name}={value}, which must lie between 0 and {LARGEST}")
    if "guidance" in values:
        values["guidance"] = float(values["guidance"])
    return PromptLine(**values)
