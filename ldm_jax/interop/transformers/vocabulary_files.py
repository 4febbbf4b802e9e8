"""The files that hold a tokenizer's vocabulary: vocab.json with merges.txt (BPE), vocab.txt (WordPiece)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_jax.errors import UserError
from ldm_jax.files.json_files import parse_json


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it is missing or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")  # a file's own line ends: \r is a token of some vocabularies
    except FileNotFoundError:
        raise UserError(f"{path} is missing; restore it from the model's source") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it.

    Raises:
        UserError: it is missing or damaged.
    """
    text = read_text(path)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it from the model's source") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (a JSON {type(content).__name__}, not an object)")
    return content


def read_vocab(path: Path) -> dict[str, int]:
    """Token to number, of a vocab.json.

    Raises:
        UserError: it is missing or damaged.
    """
    vocab = read_object(path)
    check_vocab(path, vocab)
    return vocab


def check_vocab(path: Path, vocab: Mapping[str, Any]) -> None:
    """Refuse a vocabulary that does not number its tokens 0, 1, 2, ...

    Raises:
        UserError: naming the first fault; `path` is where the vocabulary was read.
    """
    for token, number in vocab.items():
        if type(number) is not int:
            raise UserError(f"{path} is damaged (the number of token {token!r} is {number!r})")
    for expected, number in enumerate(sorted(vocab.values())):
        if number != expected:
            raise UserError(
                f"{path} is damaged (its {len(vocab)} tokens are not numbered 0 to {len(vocab) - 1}: "
                f"{number} stands where {expected} should)"
            )
    if not vocab:
        raise UserError(f"{path} is damaged (it has no tokens)")


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, in its order; a first line `#version` is passed over.

    Raises:
        UserError: it is missing, or a line is not two tokens with a space between them.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    merges = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version") or lines == [""]:
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{path}, line {number}, is not two tokens with a space between them: {line!r}")
        merges.append((pair[0], pair[1]))
    return merges


def read_word_pieces(path: Path) -> dict[str, int]:
    """Token to number, of a vocab.txt: a token on each line, numbered from 0.

    Raises:
        UserError: it is missing, a line is empty or a token stands twice.
    """
    vocab: dict[str, int] = {}
    for index, line in enumerate(read_text(path).removesuffix("\n").split("\n")):
        token = line.rstrip()
        if not token:
            raise UserError(f"{path}, line {index + 1}, has no token")
        if token in vocab:
            raise UserError(f"{path}, line {index + 1}, repeats line {vocab[token] + 1}: {token!r}")
        vocab[token] = index
    return vocab
