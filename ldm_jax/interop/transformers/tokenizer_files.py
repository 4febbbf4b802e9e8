"""Tokenizers from and to the folders in which transformers keeps them.

A folder has `tokenizer_config.json`, perhaps `special_tokens_map.json`, and the vocabulary as `vocab.json` with
`merges.txt`, as `vocab.txt`, or inside `tokenizer.json`. What is read gives the tokens of transformers 5 with
`padding="max_length", truncation=True`, for every text.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Tokenizer

from ldm_jax.conditioning.tokenizer import fix_length, fixed_length, read_marks
from ldm_jax.config import ClipTextConditioning, TextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.transformers import vocabulary_files as files
from ldm_jax.interop.transformers.tokenizer_folder import TokenizerFolder, open_folder, read_whole, special_tokens
from ldm_jax.interop.transformers.tokenizer_models import WORD_END, clip_tokenizer, recognise, wordpiece_tokenizer

logger = logging.getLogger(__name__)

Text = TypeVar("Text", TextConditioning, ClipTextConditioning)


def read_tokenizer(path: Path, context_length: int | None = None) -> Tokenizer:
    """Read a tokenizer folder of transformers, of the classes CLIPTokenizer, BertTokenizer and PreTrainedTokenizerFast.

    Args:
        path: the folder; one without `tokenizer_config.json` is judged by the vocabulary files that it has.
        context_length: tokens of a caption, marks included; by default the folder's `model_max_length`.

    Raises:
        UserError: a file is missing or damaged, the class or an option is not known, or no length is given.
    """
    folder = open_folder(path)
    length = folder.max_length() if context_length is None else context_length
    make = {"clip": _read_clip, "bert": _read_bert, "whole": _read_whole}[folder.kind]
    try:
        return make(folder, length)
    except UserError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise UserError(f"{where}{error}") from None


def _read_clip(folder: TokenizerFolder, context_length: int) -> Tokenizer:
    vocab_file, merges_file = folder.path / "vocab.json", folder.path / "merges.txt"
    versions = []
    if vocab_file.exists() or merges_file.exists() or folder.saved is None:
        versions.append((files.read_vocab(vocab_file), files.read_merges(merges_file)))
    if folder.saved is not None:
        model = _saved_model(folder, "BPE")
        versions.append((model["vocab"], [_pair(merge) for merge in model.get("merges", [])]))
    if versions[0] != versions[-1]:
        raise UserError("tokenizer.json differs from vocab.json and merges.txt; delete what is wrong")
    vocab, merges = versions[0]
    tokens = special_tokens(folder, vocab)
    return clip_tokenizer(
        vocab,
        merges,
        context_length,
        begin=tokens["bos_token"],
        end=tokens["eos_token"],
        pad=tokens["pad_token"],
        unknown=tokens["unk_token"],
        recognised=tokens.recognised,
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge of a tokenizer.json: two tokens, or in older ones both in one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _read_bert(folder: TokenizerFolder, context_length: int) -> Tokenizer:
    vocab_file = folder.path / "vocab.txt"
    versions = []
    if vocab_file.exists() or folder.saved is None:
        versions.append(files.read_word_pieces(vocab_file))
    if folder.saved is not None:
        versions.append(_saved_model(folder, "WordPiece")["vocab"])
    if versions[0] != versions[-1]:
        raise UserError("tokenizer.json differs from vocab.txt; delete what is wrong")
    tokens = special_tokens(folder, versions[0])
    return wordpiece_tokenizer(
        versions[0],
        context_length,
        begin=tokens["cls_token"],
        end=tokens["sep_token"],
        pad=tokens["pad_token"],
        unknown=tokens["unk_token"],
        recognised=tokens.recognised,
        lowercase=bool(folder.flag("do_lower_case", True)),
        strip_accents=folder.flag("strip_accents", None),
        split_chinese=bool(folder.flag("tokenize_chinese_chars", True)),
    )


def _saved_model(folder: TokenizerFolder, kind: str) -> dict[str, Any]:
    """The model of tokenizer.json, which has to be of a kind."""
    path, model = folder.path / "tokenizer.json", (folder.saved or {})["model"]
    if model.get("type", kind) != kind:
        raise UserError(f"{path} has no {kind} vocabulary, which the folder's tokenizer class needs")
    files.check_vocab(path, model["vocab"])
    return model


def _read_whole(folder: TokenizerFolder, context_length: int) -> Tokenizer:
    path = folder.path / "tokenizer.json"
    tokenizer = read_whole(path)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    files.check_vocab(path, vocab)
    tokens = special_tokens(folder, vocab)
    recognise(tokenizer, tokens.recognised)
    fix_length(tokenizer, context_length, pad=tokens["pad_token"])
    return tokenizer


def with_marks(config: Text, tokenizer: Tokenizer) -> Text:
    """A text encoder with the marks that its tokenizer writes; where the pooled text is read stays as it was.

    Raises:
        UserError: the tokenizer's empty prompt is not `begin, end, pad...`.
    """
    marks = read_marks(tokenizer)
    return dataclasses.replace(config, begin_token=marks.begin, end_token=marks.end, pad_token=marks.pad)


def write_clip_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write CLIP's tokenizer as a folder that transformers' CLIPTokenizer reads, with the same tokens.

    Raises:
        UserError: the tokenizer is of another kind.
    """
    model = _clip_model(tokenizer)
    marks = {role: str(tokenizer.id_to_token(number)) for role, number in read_marks(tokenizer)._asdict().items()}
    recognised = tokenizer.get_added_tokens_decoder()
    for mark in sorted(set(marks.values()) - {token.content for token in recognised.values()}):
        logger.warning("transformers takes %s in a prompt for the special token; here it is text", mark)
    names = {"bos_token": "begin", "eos_token": "end", "pad_token": "pad"}
    roles = {"unk_token": model["unk_token"]} | {name: marks[role] for name, role in names.items()}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": fixed_length(tokenizer),
        "added_tokens_decoder": {str(number): _options(token) for number, token in sorted(recognised.items())},
    }
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    path.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "vocab.json": json.dumps(vocab, ensure_ascii=False),
        "merges.txt": "\n".join(merges),
        "tokenizer_config.json": json.dumps(config | roles, ensure_ascii=False, indent=2),
        "special_tokens_map.json": json.dumps(roles, ensure_ascii=False, indent=2),
    }.items():
        (path / name).write_bytes(f"{text}\n".encode())


def is_clip(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is CLIP's in all but its vocabulary."""
    try:
        _clip_model(tokenizer)
    except UserError:
        return False
    return True


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer as a folder for transformers: CLIP's for CLIPTokenizer, others for PreTrainedTokenizerFast.

    Raises:
        UserError: its empty prompt is not `begin, end, pad...`.
    """
    if is_clip(tokenizer):
        return write_clip_tokenizer(tokenizer, path)
    marks = read_marks(tokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fixed_length(tokenizer),
        **{f"{role}_token": tokenizer.id_to_token(number) for role, number in
           (("bos", marks.begin), ("eos", marks.end), ("pad", marks.pad))},
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")


def _clip_model(tokenizer: Tokenizer) -> dict[str, Any]:
    """The model of a tokenizer that is CLIP's in all but its vocabulary."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if model["type"] == "BPE" and isinstance(token := model["unk_token"], str):
        vocab = {f"a{WORD_END}": 0, token: 1}
        pattern = clip_tokenizer(vocab, [], begin=token, end=token, pad=token, unknown=token)
        expected = json.loads(pattern.to_str())
        expected["model"] |= {"vocab": model["vocab"], "merges": model["merges"]}
        if all(content[part] == expected[part] for part in ("normalizer", "pre_tokenizer", "model")):
            return model
    raise UserError("only CLIP's tokenizer can be written for CLIPTokenizer; this one is of another kind")


def _options(token: AddedToken) -> dict[str, Any]:
    """A token with how it is recognised, as folders write it."""
    options = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {option: getattr(token, option) for option in options}
