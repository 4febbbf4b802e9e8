"""Prepared data sets on disk: where they are kept, and how one is written whole or not at all.

A set is generated in a temporary folder beside its final place and renamed at the end, so a killed process leaves no
half-written set, and of two processes that prepare the same set the second finds it done. A manifest of sizes and
SHA-256 sums is written last: it tells a set that was damaged later (which is generated anew), and it is what the
fingerprint of the data is made from.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ldm_jax.errors import UserError

_log = logging.getLogger(__name__)
_MANIFEST = "ldm_jax.json"
_WORK_PREFIX = ".preparing-"
_STALE_SECONDS = 24 * 3600.0
_SMALL = 2**20  # larger files hold records, each with a checksum of its own


def default_cache_dir() -> Path:
    """Where the package keeps what it can make again: $LDM_JAX_CACHE, or ldm_jax in the user's cache folder."""
    if own := os.environ.get("LDM_JAX_CACHE"):
        return Path(own).expanduser()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "ldm_jax"


def prepared_root(cache_dir: str | None) -> Path:
    """The folder of prepared data sets: `data.cache_dir`, or `data` in the cache folder."""
    return Path(cache_dir).expanduser() if cache_dir else default_cache_dir() / "data"


def prepare(key: str, make_builder: Callable[[str], Any], cache_dir: str | None) -> Path:
    """The folder of a prepared set, generated first if it is not there.

    Args:
        key: name of the folder; has to change whenever the set would come out different.
        make_builder: gives the TFDS builder that writes into the `data_dir` it is called with.
        cache_dir: see `prepared_root`.

    Raises:
        UserError: the folder cannot be written, or the builder refuses its input.
    """
    root = prepared_root(cache_dir)
    folder = root / key
    if is_whole(folder):
        return folder
    with _writable(root):
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        _set_aside(folder)
        work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=root))
        try:
            _log.info("preparing %s in %s", key, root)
            _install(_generate(make_builder, work), folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a prepared set is there with every file at its full size, and the small ones, such as JSON, unchanged."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        return all(_is_whole(folder / name, entry) for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or not what was written
        return False


def _is_whole(path: Path, entry: dict[str, Any]) -> bool:
    size = path.stat().st_size
    return size == entry["size"] and (size > _SMALL or file_sha256(path) == entry["sha256"])


def prepared_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over the contents of a prepared set, from its manifest."""
    files = json.loads((folder / _MANIFEST).read_text())["files"]
    return digest(sorted((name, entry["sha256"]) for name, entry in files.items() if ".array_record" in name))


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_tfds() -> Any:
    """TensorFlow Datasets, without its small talk and without progress bars in log files."""
    import tensorflow_datasets as tfds

    absl_log = logging.getLogger("absl")
    if _is_news not in absl_log.filters:
        absl_log.addFilter(_is_news)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    return tfds


def _is_news(record: logging.LogRecord) -> bool:
    small_talk = record.levelno < logging.WARNING or "OpenCV is not installed" in record.getMessage()
    return not (small_talk and "tensorflow_datasets" in record.pathname)


def _generate(make_builder: Callable[[str], Any], work: Path) -> Path:
    import_tfds()
    builder = make_builder(str(work))
    # TFDS announces itself on stdout, which belongs to results (`--json`).
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record")
    folder = Path(builder.data_path)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }
    (folder / _MANIFEST).write_text(json.dumps({"files": entries}, indent=1) + "\n")
    return folder


def _install(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not is_whole(folder):  # else another process was quicker, and made the same
            raise


def _set_aside(folder: Path) -> None:
    if folder.exists() and not is_whole(folder):
        _log.warning("the prepared data set %s is damaged: it is made again", folder)
        aside = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=folder.parent))
        folder.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Remove what killed preparations left; a live one has written something within the last day."""
    for work in root.glob(f"{_WORK_PREFIX}*"):
        with contextlib.suppress(OSError):  # another process may be removing it, too
            newest = max(path.stat().st_mtime for path in (work, *work.rglob("*")))
            if time.time() - newest > _STALE_SECONDS:
                shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _writable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise UserError(
            f"cannot write prepared data under {root} ({what}); choose another folder with --data.cache-dir DIR"
        ) from error
