"""The manifest of a run, a sample set or a score: how it was made and what came out, so that it can be made again.

version, kind     of this format; `run`, `samples`, `scores`, or `model` for one that was converted and not made here
started, command  when, and in which words
directory         where relative paths count from
python, platform, machine, packages, git, xla, flags, devices, num_processes
                  circumstances: what results may depend on beside what was asked for; they are compared
config            what was asked for, as JSON: an experiment, a request of pictures, the flags of an evaluation
seed, mesh, ...   what a person looks for first; each kind adds its own: data and model with their checksums
results           what came out: checksums of checkpoints and pictures, or scores; empty until it is finished
continued         the circumstances of each time that it went on
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json
from ldm_jax.files.places import Place

Kind: TypeAlias = Literal["run", "samples", "scores", "model"]
Manifest: TypeAlias = dict[str, Any]

NAME = "manifest.json"
VERSION = 1
PACKAGES = (
    *("ldm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "array_record"),
    *("numpy", "pillow", "tokenizers", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12"),
)
"""Those that take part in results; one that is not installed is None."""

_COMPARED = ("python", "platform", "machine", "packages", "git", "xla", "flags", "devices", "num_processes")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_CACHES = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")


def make_manifest(kind: Kind, **asked: Any) -> Manifest:
    """The manifest of something that begins now; `asked` are JSON values: config, seed, mesh and what a kind adds."""
    return {"version": VERSION, "kind": kind, **circumstances(), **asked, "results": {}, "continued": []}


def circumstances() -> dict[str, Any]:
    """What results may depend on beside what was asked for."""
    import jax  # `ldm` reads manifests before jax is set up

    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "directory": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": processor(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__)),
        "xla": jax.local_devices()[0].client.platform_version,
        "flags": {name: value for name, value in sorted(os.environ.items()) if _is_flag(name)},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "num_processes": jax.process_count(),
    }


def as_text(manifest: Mapping[str, Any]) -> str:
    """The content of its file."""
    return json.dumps(manifest, indent=1) + "\n"


def read_manifest(path: Place) -> Manifest:
    """A manifest that is to be used.

    Raises:
        UserError: it is missing, damaged, or of another version.
    """
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a {NAME}, a file of scores, or the folder of either") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it") from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION:
        found = "tells no version: it is no manifest, or one" if version is None else f"is of version {version!r},"
        raise UserError(f"{path} {found} of another ldm_jax; this one reads manifests of version {VERSION}")
    for name, kind in (("kind", str), ("config", dict), ("results", dict), ("continued", list), ("devices", list)):
        if not isinstance(manifest.get(name), kind):
            raise UserError(f"{path} is damaged: its {name} is {manifest.get(name)!r}, which is no {kind.__name__}")
    if not all(isinstance(device, str) for device in manifest["devices"]):
        raise UserError(f"{path} is damaged: its devices are {manifest['devices']!r}, not names")
    if not isinstance(manifest.get("data", {}), dict):
        raise UserError(f"{path} is damaged: its data are {manifest['data']!r}, not those of splits by name")
    return manifest


def known_manifest(path: Place) -> Manifest:
    """The manifest of a run as far as it can be read, of an older version too; empty when it is missing or damaged."""
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
        lists = [manifest["devices"], manifest["continued"], manifest.get("data", {}).get("class_names", [])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    named = isinstance(lists[0], list) and all(isinstance(device, str) for device in lists[0])
    return manifest if named and all(isinstance(part, list) for part in lists) else {}


def changed_circumstances(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The circumstances that differ, as lines `name: old -> new`."""
    return [line for name in _COMPARED for line in changes(name, _short(old.get(name)), _short(new.get(name)))]


def changes(name: str, old: Any, new: Any) -> Iterator[str]:
    """Where two JSON values differ, as lines `name.key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from changes(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield f"{name}: {old} -> {new}"


def _short(value: Any) -> Any:
    """Devices as their number and kinds."""
    return f"{len(value)} x {', '.join(sorted(set(value)))}" if isinstance(value, list) else value


def processor() -> str:
    """The processor's name: XLA compiles for what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def git_state(file: Path) -> dict[str, str | None] | None:
    """Commit of the checkout that tracks a file, and the SHA-256 of its uncommitted changes; None if none does."""
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None  # an installed package, which may lie inside somebody else's repository
    commit, changes = _git(file.parent, "rev-parse", "HEAD"), _git(file.parent, "diff", "HEAD")
    text = (commit or b"").decode().strip()
    return {"commit": text or None, "changes": hashlib.sha256(changes).hexdigest() if changes else None}


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_flag(name: str) -> bool:
    return name in _FLAGS or (name.startswith("JAX_") and not name.startswith(_CACHES))
