"""The tokenizer of jointly trained text models: byte-pair encoding learned from the captions of the training split.

It works on bytes, so that every script can be written, and normalises case and spaces. A prompt becomes
`begin, tokens..., end, pad...` of a fixed length.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ldm_jax.errors import UserError

logger = logging.getLogger(__name__)

PAD, BEGIN, END = 0, 1, 2
_SPECIAL = ["<pad>", "<begin>", "<end>"]
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE of at most `vocab_size` entries (Sennrich et al. 2016, arXiv:1508.07909).

    Raises:
        UserError: the vocabulary cannot even hold the bytes.
    """
    smallest = len(_SPECIAL) + len(_ALPHABET)
    if vocab_size < smallest:
        raise UserError(f"conditioning.vocab_size={vocab_size} cannot hold the bytes; use at least {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=_SPECIAL, initial_alphabet=_ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a saved tokenizer.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a text-conditional run cannot be used without its tokenizer") from None
    except Exception as error:  # tokenizers raises bare Exception for every fault in the file
        raise UserError(f"{path} is damaged ({error}); restore it from a copy of the run") from None


def empty_tokens(context_length: int) -> Int32[np.ndarray, " l"]:
    """The tokens of the empty prompt."""
    tokens = np.full(context_length, PAD, np.int32)
    tokens[:2] = BEGIN, END
    return tokens


class CaptionEncoder:
    """Captions to arrays of tokens of a fixed length; warns once for each long prompt when asked to."""

    def __init__(self, tokenizer: Tokenizer, context_length: int, *, warn: bool = False) -> None:
        """Use `tokenizer` for captions of at most `context_length` tokens, begin and end included."""
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # "<end>" in a caption is text, not the mark
        self.context_length = context_length
        self.warn = warn

    def __call__(self, caption: str) -> Int32[np.ndarray, " l"]:
        """Tokens of one caption, cut at the context length.

        Raises:
            UserError: the caption is not text.
        """
        try:
            ids = self.tokenizer.encode(caption).ids if caption.strip() else []
        except TypeError:  # lone surrogates: bytes of a command line that are not UTF-8
            raise UserError(f"{caption!r} is not valid Unicode; write the prompt in UTF-8") from None
        room = self.context_length - 2
        if self.warn and len(ids) > room:
            kept = self.tokenizer.decode(ids[:room]).strip(" \ufffd")  # no half characters
            logger.warning("the prompt has %d tokens and %d fit; it was cut after: %s", len(ids), room, kept)
        tokens = np.full(self.context_length, PAD, np.int32)
        ids = [BEGIN, *ids[:room], END]
        tokens[: len(ids)] = ids
        return tokens
