"""What a tokenizer folder of transformers says: its kind, its options, its special tokens.

Who says it has changed over the years. `tokenizer_config.json` always counts; `special_tokens_map.json`,
`added_tokens.json` and the list of added tokens in `tokenizer.json` count where the config has no
`added_tokens_decoder`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from ldm_jax.errors import UserError
from ldm_jax.interop.transformers import vocabulary_files as files
from ldm_jax.interop.transformers.tokenizer_models import CLIP_BEGIN, CLIP_END, special

Kind = Literal["clip", "bert", "whole"]
KINDS: dict[str, Kind] = {
    "CLIPTokenizer": "clip",
    "CLIPTokenizerFast": "clip",
    "BertTokenizer": "bert",
    "BertTokenizerFast": "bert",
    "PreTrainedTokenizerFast": "whole",
    "TokenizersBackend": "whole",
}
"""The classes of transformers that can be read; `whole` ones are all in their tokenizer.json."""
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULT_ROLES: dict[Kind, dict[str, str]] = {
    "clip": {"bos_token": CLIP_BEGIN, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": CLIP_END},
    "bert": {role: f"[{role[:-6].upper()}]" for role in ROLES[2:]},
    "whole": {},
}
_ONLY_SUPPORTED = {"padding_side": "right", "truncation_side": "right", "split_special_tokens": False}
_LISTS = {
    "added_tokens_decoder": (dict,),
    "extra_special_tokens": (list, dict),
    "additional_special_tokens": (list, dict),
}
_LONGEST = 100_000  # transformers writes 1e30 where nobody has said how many tokens a model takes


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer folder before a tokenizer is made of it."""

    path: Path
    kind: Kind
    config: dict[str, Any]
    """tokenizer_config.json, with special_tokens_map.json laid over it where that counts."""
    saved: dict[str, Any] | None
    """tokenizer.json, when it is there; `tokenizers` can read it."""

    def max_length(self) -> int:
        """How many tokens the model takes.

        Raises:
            UserError: the folder does not say.
        """
        length = self.config.get("model_max_length", self.config.get("max_len"))
        if not isinstance(length, int) or length > _LONGEST:
            raise UserError(
                f"{self.path} does not say how many tokens its model takes (model_max_length={length}); "
                "give context_length"
            )
        return length

    def flag(self, name: str, default: bool | None) -> bool | None:
        """An option that is true or false, or where that is the default null.

        Raises:
            UserError: it is something else.
        """
        value = self.config.get(name, default)
        if not isinstance(value, bool) and not (value is None and default is None):
            raise UserError(f"{self.path} has {name}={value!r}; use true or false")
        return value


def open_folder(path: Path) -> TokenizerFolder:
    """Read the JSON files of a folder.

    Raises:
        UserError: it is no folder, a file is damaged, or its class or an option is not supported.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the folder of a tokenizer, with tokenizer_config.json in it")
    optional = {name: path / f"{name}.json" for name in ("tokenizer_config", "special_tokens_map", "tokenizer")}
    found = {name: files.read_object(file) for name, file in optional.items() if file.exists()}
    config, saved = found.get("tokenizer_config", {}), found.get("tokenizer")
    if saved is not None:
        read_whole(optional["tokenizer"])
    if "added_tokens_decoder" not in config:
        config = config | found.get("special_tokens_map", {})
    for part in ("padding", "truncation"):
        direction = ((saved or {}).get(part) or {}).get("direction", "Right")
        config = {f"{part}_side": direction.lower()} | config
    for option, value in _ONLY_SUPPORTED.items():
        if config.get(option, value) != value:
            raise UserError(f"{path} has {option}={config[option]!r}; only {value!r} is supported")
    for option, kinds in _LISTS.items():
        if not isinstance(config.get(option), (*kinds, type(None))):
            raise UserError(f"{path} is damaged (it has {option}={config[option]!r})")
    return TokenizerFolder(path, _kind(path, config), config, saved)


def read_whole(path: Path) -> Tokenizer:
    """A tokenizer.json.

    Raises:
        UserError: it is missing or damaged.
    """
    text = files.read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception for every fault in the file
        raise UserError(f"{path} is damaged ({error}); restore it from the model's source") from None


def _kind(path: Path, config: Mapping[str, Any]) -> Kind:
    name = config.get("tokenizer_class")
    if name is not None:
        if name not in KINDS:
            raise UserError(f"{path} has tokenizer_class={name!r}; known are {', '.join(KINDS)}")
        return KINDS[name]
    by_file: dict[str, Kind] = {"vocab.json": "clip", "vocab.txt": "bert", "tokenizer.json": "whole"}
    for file, kind in by_file.items():
        if (path / file).exists():
            return kind
    raise UserError(f"{path} has no tokenizer in it: none of tokenizer_config.json, {', '.join(by_file)}")


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a folder."""

    path: Path
    roles: dict[str, str]
    """`bos_token` and its like: what plays which role."""
    recognised: dict[int, AddedToken]
    """Every token that is found where a text spells it, by number."""

    def __getitem__(self, role: str) -> str:
        """The token of a role.

        Raises:
            UserError: nothing plays it.
        """
        if role not in self.roles:
            raise UserError(f"{self.path} has no {role}, which its tokenizer needs")
        return self.roles[role]


def special_tokens(folder: TokenizerFolder, vocab: Mapping[str, int]) -> SpecialTokens:
    """The special tokens of a folder with this vocabulary.

    Raises:
        UserError: a token is written in a way that is not known, or missing from the vocabulary.
    """
    named = {role: _added_token(folder, token) for role, token in _named_tokens(folder).items() if token is not None}
    extra = folder.config.get("extra_special_tokens") or folder.config.get("additional_special_tokens") or []
    further = [_added_token(folder, token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    listed = _listed_tokens(folder, {token.content for token in named.values()})
    numbers = {**vocab, **{token.content: number for number, token in listed.items()}}
    found = {}
    for token in [*named.values(), *further]:
        if token.content not in numbers:
            raise UserError(f"{folder.path}: the special token {token.content!r} is missing from the vocabulary")
        found[numbers[token.content]] = token  # where two roles have one token, how the last is written counts
    return SpecialTokens(folder.path, {role: token.content for role, token in named.items()}, found | listed)


def _named_tokens(folder: TokenizerFolder) -> dict[str, Any]:
    """The tokens with a role: those of the class, those of the folder, and any other name that ends in `_token`."""
    config = folder.config
    named = _DEFAULT_ROLES[folder.kind] | {role: config[role] for role in ROLES if role in config}
    if folder.kind == "whole" and (padding := (folder.saved or {}).get("padding")):
        named = {"pad_token": padding["pad_token"]} | named
    others = {key: config[key] for key in config if key.endswith("_token") and isinstance(config[key], str | dict)}
    return {role: named[role] for role in ROLES if role in named} | {k: others[k] for k in others if k not in ROLES}


def _listed_tokens(folder: TokenizerFolder, named: set[str]) -> dict[int, AddedToken]:
    """The folder's list of added tokens: in its config, or in older folders in files beside it."""
    decoder = folder.config.get("added_tokens_decoder")
    tokens: list[tuple[object, object]] = []
    if decoder is None and (folder.path / "added_tokens.json").exists():
        for content, number in files.read_object(folder.path / "added_tokens.json").items():
            is_special = content in named
            tokens.append((number, {"content": content, "special": is_special, "normalized": not is_special}))
    if decoder is None or folder.kind == "whole":
        tokens += [(token["id"], token) for token in (folder.saved or {}).get("added_tokens", [])]
    tokens += (decoder or {}).items()
    return {_number(folder, number): _added_token(folder, token) for number, token in tokens}


def _number(folder: TokenizerFolder, written: object) -> int:
    if not str(written).isdecimal():
        raise UserError(f"{folder.path} is damaged (an added token has the number {written!r})")
    return int(str(written))


def _added_token(folder: TokenizerFolder, written: object) -> AddedToken:
    """A token as folders write it: its text, or its text with how it is recognised."""
    if isinstance(written, str):
        return special(written)
    if not isinstance(written, dict) or not isinstance(written.get("content"), str):
        raise UserError(f"{folder.path} is damaged (it has {written!r} for a special token)")
    options = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{key: written[key] for key in options if key in written})
