"""What a folder of pictures holds: its pictures by split, their classes and their captions.

- `train/` and `test/` inside the folder are the splits. Without `test/`, a share of the pictures is held out by a hash
  of the file name, so adding pictures moves none of the old ones; without `train/`, all outside `test/` trains.
- The first sub-folder is the class, if every picture lies in one and there are at least two.
- A caption comes from a line `{"file_name": ..., "text": ...}` (or "caption") of a `metadata.jsonl` above the picture,
  else from a `.txt` file of the same name beside it.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ldm_jax.data.pictures import SUFFIXES
from ldm_jax.data.preparation import digest
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json

_METADATA = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a folder holds: paths relative to it, sorted."""

    directory: Path
    splits: dict[str, list[str]]
    """Pictures of each split."""
    class_names: tuple[str, ...] = ()
    metadata: list[str] = field(default_factory=list)
    """The metadata.jsonl files."""
    texts: frozenset[str] = frozenset()
    """The .txt files."""
    fingerprint: str = ""
    """SHA-256 (hex) over names, sizes and times of all these files, and the rule of the split."""

    @property
    def has_captions(self) -> bool:
        """Whether there are captions for any picture."""
        pictures = (picture for pictures in self.splits.values() for picture in pictures)
        return bool(self.metadata) or any(_text_beside(picture) in self.texts for picture in pictures)

    def class_of(self, picture: str) -> str:
        """Name of the class of a picture, where there are classes."""
        return _inner(picture).partition("/")[0]

    def caption_beside(self, picture: str) -> str:
        """The caption in the text file beside a picture; empty if there is none.

        Raises:
            UserError: the file is not UTF-8 text.
        """
        text = _text_beside(picture)
        return _read_text(self.directory / text).strip() if text in self.texts else ""


def scan_folder(directory: Path, test_fraction: float) -> Scan:
    """List the pictures and caption files of a folder, without opening them.

    Raises:
        UserError: the folder does not exist or holds no pictures.
    """
    if not directory.is_dir():
        raise UserError(
            f"the image folder {directory} does not exist; name another one with --data.source.directory DIR"
        )
    directory = directory.resolve()
    files = {path.relative_to(directory).as_posix(): path for path in _walk(directory)}
    pictures = sorted(name for name, path in files.items() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        endings = " ".join(sorted(SUFFIXES))
        raise UserError(f"there are no pictures in {directory}; files that end in {endings} are taken for pictures")
    splits, inner = _split(directory, pictures, test_fraction)
    return Scan(
        directory=directory,
        splits=splits,
        class_names=_class_names(inner),
        metadata=sorted(name for name, path in files.items() if path.name == _METADATA),
        texts=frozenset(name for name, path in files.items() if path.suffix.lower() == ".txt"),
        fingerprint=digest([test_fraction, [(name, *_state(path)) for name, path in sorted(files.items())]]),
    )


def read_captions(scan: Scan) -> dict[str, str]:
    """Captions by picture, from every metadata.jsonl.

    Raises:
        UserError: a line is not as it should be, or names no picture of the folder.
    """
    pictures = {picture for pictures in scan.splits.values() for picture in pictures}
    captions = {}
    for name in scan.metadata:
        path = scan.directory / name
        for number, line in enumerate(_read_text(path).splitlines(), start=1):
            if line.strip():
                file_name, caption = _parse(line, f"{path} line {number}")
                picture = os.path.normpath(os.path.join(os.path.dirname(name), file_name)).replace(os.sep, "/")
                if picture not in pictures:
                    raise UserError(f"{path} line {number} names {file_name}, which is no picture of {scan.directory}")
                captions[picture] = caption
    return captions


def _walk(directory: Path) -> Iterator[Path]:
    """Files below a folder, through links, but into no folder twice and into no hidden one."""
    seen = set()
    for root, folders, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in files if not name.startswith("."))


def _state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:  # a dangling link: it is reported with the pictures that cannot be read
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _split(directory: Path, pictures: list[str], fraction: float) -> tuple[dict[str, list[str]], list[str]]:
    """Pictures by split, and all their paths inside the folder of their split."""
    test = [name for name in pictures if name.startswith("test/")]
    train = [name for name in pictures if name.startswith("train/")]
    train = train or [name for name in pictures if not name.startswith("test/")]
    if not (directory / "test").is_dir():
        test = [name for name in train if _fraction_of(name) < fraction]
        train = [name for name in train if _fraction_of(name) >= fraction]
    return {"train": train, "test": test}, [_inner(name) for name in train + test]


def _fraction_of(name: str) -> float:
    return int.from_bytes(hashlib.sha256(os.fsencode(_inner(name))).digest()[:8], "big") / 2**64


def _inner(name: str) -> str:
    return name.removeprefix("train/").removeprefix("test/")


def _class_names(inner: list[str]) -> tuple[str, ...]:
    tops = {name.partition("/")[0] if "/" in name else None for name in inner}
    return tuple(sorted(top for top in tops if top)) if None not in tops and len(tops) > 1 else ()


def _text_beside(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the caption file {path} cannot be read as UTF-8 text: {error}") from error


def _parse(line: str, where: str) -> tuple[str, str]:
    try:
        values = parse_json(line)
        caption = values["text"] if "text" in values else values["caption"]
        if isinstance(values["file_name"], str) and isinstance(caption, str):
            return values["file_name"], caption
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f'{where} has to be like {{"file_name": "a.png", "text": "a caption"}}; it is {line[:200]}')
