"""Results of plans on disk: JSON by key, so that a plan that was made once takes seconds.

Two keys lead to a result. The first is made of what was asked for and of every source file here, and spares importing
jax; the second of the lowered program and of the files that read compiled ones, and survives changes of the rest that
do not change the step.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ldm_jax
from ldm_jax.data.preparation import default_cache_dir
from ldm_jax.files.json_files import parse_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def versions() -> dict[str, str]:
    """Installed versions of what decides how a step is compiled."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def source_digest(folder: str = ".") -> str:
    """SHA-256 of the source of this package, or of a folder of it."""
    root, digest = Path(ldm_jax.__file__).parent, hashlib.sha256()
    for path in sorted((root / folder).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def key_of(**parts: Any) -> str:
    """SHA-256 of anything that JSON can say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where results lie: `plans` in the cache folder of the package."""
    return default_cache_dir() / "plans"


def read(key: str) -> dict[str, Any] | None:
    """The result of a key; None where there is none, or where the file is damaged."""
    try:
        value = parse_json((cache_folder() / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write(key: str, value: dict[str, Any]) -> None:
    """Keep a result; a folder that cannot be written only costs time."""
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=cache_folder(), suffix=".tmp")
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file)
        os.replace(temporary, cache_folder() / f"{key}.json")
