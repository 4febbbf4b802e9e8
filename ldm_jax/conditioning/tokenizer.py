"""Captions to tokens of a fixed length: `begin, tokens..., end, pad...`.

Everything that this needs is part of the `tokenizers` JSON: cleaning, model, the marks (post-processor), the length
(truncation, padding), and which marks are recognised in a text (added tokens). So a `tokenizer.json` is complete, and
what is said here about one kind of tokenizer is how to train it: on bytes, so that every script can be written, without
regard to case and spaces, and with marks that stay text when a caption spells them.
"""

import html
import json
import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ldm_jax.config import ClipTextConditioning, Conditioning, SdxlConditioning, TextConditioning
from ldm_jax.errors import UserError
from ldm_jax.files.places import Place

logger = logging.getLogger(__name__)

PAD, BEGIN, END = 0, 1, 2
_SPECIAL = ["<pad>", "<begin>", "<end>"]
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()


class Marks(NamedTuple):
    """The tokens around the tokens of a text."""

    begin: int = BEGIN
    end: int = END
    pad: int = PAD


def empty_tokens(context_length: int, begin: int = BEGIN, end: int = END, pad: int = PAD) -> Int32[np.ndarray, " l"]:
    """The tokens of the empty prompt; the marks default to those of a trained tokenizer."""
    tokens = np.full(context_length, pad, np.int32)
    tokens[:2] = begin, end
    return tokens


def frame(tokenizer: Tokenizer, context_length: int, *, begin: str, end: str, pad: str) -> None:
    """Let `tokenizer` write `begin, tokens..., end, pad...` of `context_length` tokens, and its JSON say so.

    Raises:
        UserError: one of the marks is not in the vocabulary.
    """
    ids = {mark: token_id(tokenizer, mark) for mark in (begin, end)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[begin, "$A", end], special_tokens=list(ids.items())
    )
    fix_length(tokenizer, context_length, pad=pad)


def fix_length(tokenizer: Tokenizer, context_length: int, *, pad: str) -> None:
    """Let `tokenizer` cut and pad to `context_length` tokens, its own marks included, and its JSON say so.

    Raises:
        UserError: `pad` is not in the vocabulary, or the marks alone are longer.
    """
    marks = tokenizer.num_special_tokens_to_add(is_pair=False)
    if context_length <= marks:
        raise UserError(f"context_length={context_length} has no room for text beside {marks} marks")
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=token_id(tokenizer, pad), pad_token=pad)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The number of a token that has to exist.

    Raises:
        UserError: it does not.
    """
    number = tokenizer.token_to_id(token)
    if number is None:
        raise UserError(f"the special token {token!r} is missing from the vocabulary")
    return number


def train_tokenizer(
    captions: Iterable[str], vocab_size: int, context_length: int, marks: Marks | None = None
) -> Tokenizer:
    """Learn a byte-level BPE of at most `vocab_size` entries (Sennrich et al. 2016, arXiv:1508.07909).

    The marks get the numbers that `marks` gives them, 0 to 2 when it is None.

    Raises:
        UserError: the vocabulary cannot even hold the bytes, or two marks have one number.
    """
    special = _special_tokens(marks or Marks())
    smallest = len(special) + len(_ALPHABET)
    if vocab_size < smallest:
        raise UserError(f"conditioning.vocab_size={vocab_size} cannot hold the bytes; use at least {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=_ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return _finished(tokenizer, context_length)


def _special_tokens(marks: Marks) -> list[str]:
    """The tokens before those of the text: the marks, and unused ones on other numbers, as in BERT's vocabulary."""
    names = dict(zip((marks.pad, marks.begin, marks.end), _SPECIAL, strict=True))
    if len(names) < len(_SPECIAL):
        raise UserError(f"the marks of a trained tokenizer need three different numbers, not {marks}")
    return [names.get(i, f"<unused{i}>") for i in range(max(names) + 1)]


def _finished(tokenizer: Tokenizer, context_length: int) -> Tokenizer:
    """A trained tokenizer with its marks and its length, none of whose marks is recognised in a text."""
    content = json.loads(tokenizer.to_str())
    finished = Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))
    nothing = normalizers.Replace(Regex(r"\A[\s\x1C-\x1F]+\z"), "")  # separators alone are the empty prompt
    finished.normalizer = normalizers.Sequence([tokenizer.normalizer, nothing])
    pad, begin, end = _SPECIAL
    frame(finished, context_length, begin=begin, end=end, pad=pad)
    return finished


def load_tokenizer(path: Place, context_length: int) -> Tokenizer:
    """Read a saved tokenizer.

    The first runs kept marks and length in the code: their files are completed as they are read, and stay as they are
    on the disk.

    Raises:
        UserError: the file is missing or damaged, or its tokenizer is for another length.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        if tokenizer.truncation is None and [tokenizer.id_to_token(i) for i in (PAD, BEGIN, END)] == _SPECIAL:
            tokenizer = _finished(tokenizer, context_length)
        found = fixed_length(tokenizer)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a text-conditional run cannot be used without its tokenizer") from None
    except Exception as error:  # tokenizers raises bare Exception for every fault in the file
        raise UserError(f"{path} is damaged ({error}); restore it from a copy of the run") from None
    if found != context_length:
        raise UserError(
            f"{path} writes {found} tokens, but conditioning.context_length={context_length}; restore the tokenizer "
            "that belongs to the run"
        )
    return tokenizer


def fixed_length(tokenizer: Tokenizer) -> int:
    """How many tokens `tokenizer` makes of every text.

    Raises:
        ValueError: that depends on the text.
    """
    cut, fill = tokenizer.truncation, tokenizer.padding
    if cut is None or fill is None or cut["max_length"] != fill["length"]:
        raise ValueError("the tokenizer has no fixed length")
    return cut["max_length"]


def read_marks(tokenizer: Tokenizer) -> Marks:
    """The marks that `tokenizer` writes, for `empty_tokens` where no tokenizer is in hand.

    Raises:
        UserError: its empty prompt is not `begin, end, pad...`.
    """
    tokens = tokenizer.encode("").ids
    padding = tokenizer.padding
    marks = Marks(*tokens[:2], pad=padding["pad_id"] if padding else PAD)
    if len(tokens) != fixed_length(tokenizer) or tokens != empty_tokens(len(tokens), *marks).tolist():
        raise UserError(f"the tokenizer writes the empty prompt as {tokens[:4]}..., not as begin, end and padding")
    return marks


class CaptionEncoder:
    """Captions to arrays of tokens of a fixed length; warns once for each long prompt when asked to."""

    def __init__(self, tokenizer: Tokenizer, *, warn: bool = False, unescape_html: bool = False) -> None:
        """Use `tokenizer`, which has a fixed length.

        Args:
            tokenizer: from `train_tokenizer`, `load_tokenizer` or `interop.tokenizer_files`.
            warn: say in the log where a caption was cut.
            unescape_html: read `&amp;` (and `&amp;amp;`) as `&`, as openai/CLIP does with the captions that it was
                trained on. transformers and diffusers do not, and so it is off.

        Raises:
            ValueError: the tokenizer has no fixed length.
        """
        self.tokenizer = tokenizer
        self.context_length = fixed_length(tokenizer)
        self.warn = warn
        self.unescape_html = unescape_html

    def __call__(self, caption: str) -> Int32[np.ndarray, " l"]:
        """Tokens of one caption, cut at the context length.

        Raises:
            UserError: the caption is not text.
        """
        if self.unescape_html:
            caption = html.unescape(html.unescape(caption))
        encoding = self.encode(caption)
        if self.warn and encoding.overflowing:
            self.warn_of_cut(caption, encoding)
        return np.array(encoding.ids, np.int32)

    def encode(self, text: str) -> Encoding:
        """The tokens of a text as it stands; those that do not fit are in `overflowing`, framed as well.

        Raises:
            UserError: the text is not text.
        """
        try:
            return self.tokenizer.encode(text)
        except TypeError:  # lone surrogates: bytes of a command line that are not UTF-8
            raise UserError(f"{text!r} is not valid Unicode; write the prompt in UTF-8") from None

    def warn_of_cut(self, caption: str, encoding: Encoding) -> None:
        """Say in the log where a caption that does not fit is cut."""
        kept, *rest = (_places(part) for part in (encoding, *encoding.overflowing))
        last, first = kept[-1], rest[0][0]
        end = min(last[1], first[0])  # tokens are bytes: a character may begin in one part and end in the other
        logger.warning(
            "the prompt has %d tokens and %d fit; it was cut after: %s",
            *(len(kept) + sum(map(len, rest)), len(kept), caption[:end].strip()),
        )


class PromptEncoder:
    """Captions to the inputs of a conditioner: an array of tokens for each of its tokenizers."""

    def __init__(self, tokenizers: Mapping[str, Tokenizer], *, warn: bool = False) -> None:
        """Use `tokenizers`, by the name of the input that each makes; `warn` tells where a caption was cut."""
        self.tokenizers = dict(tokenizers)
        self.encoders = {name: CaptionEncoder(tokenizer, warn=warn) for name, tokenizer in self.tokenizers.items()}

    def __call__(self, caption: str) -> dict[str, Int32[np.ndarray, " l"]]:
        """Tokens of one caption; raises what `CaptionEncoder` raises."""
        return {name: encoder(caption) for name, encoder in self.encoders.items()}


def token_inputs(config: Conditioning) -> dict[str, int]:
    """The inputs of a conditioner that a tokenizer makes, with their context lengths."""
    match config:
        case TextConditioning(tokens="captions") | ClipTextConditioning():
            return {"tokens": config.context_length}
        case SdxlConditioning():
            return {"tokens": config.first.context_length, "tokens_2": config.second.context_length}
        case _:
            return {}


def _places(encoding: Encoding) -> list[tuple[int, int]]:
    """From where to where in the text each token stands, marks and padding left out."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [place for place, is_mark in pairs if not is_mark]
