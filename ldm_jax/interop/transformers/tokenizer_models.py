"""The tokenizers of imported text encoders, built from their vocabularies: CLIP's byte-pair encoding, BERT's WordPiece.

Each gives the tokens of the transformers 5 class of that name, for every text. Both recognise their special tokens
where a text spells them, as transformers and the original CLIP do. CLIP's paper code also repairs broken Unicode
(ftfy) and reads HTML entities before it looks at a text; transformers does neither (`CaptionEncoder` has the second).

Sources: Radford et al. 2021 (arXiv:2103.00020), section 2.4, and openai/CLIP `simple_tokenizer.py`; Devlin et al. 2019
(arXiv:1810.04805), and google-research/bert `tokenization.py`.
"""

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ldm_jax.conditioning.tokenizer import frame
from ldm_jax.errors import UserError

WORD_END = "</w>"
"""What CLIP writes behind the last piece of a word."""
CLIP_BEGIN, CLIP_END = "<|startoftext|>", "<|endoftext|>"
# Words are the special tokens, English contractions, runs of letters, single digits, and runs of what is left.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def special(content: str) -> AddedToken:
    """A token that is recognised in a text exactly as written."""
    return AddedToken(content, special=True, normalized=False)


def clip_tokenizer(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    context_length: int = 77,
    *,
    begin: str = CLIP_BEGIN,
    end: str = CLIP_END,
    pad: str = CLIP_END,
    unknown: str = CLIP_END,
    recognised: Mapping[int, AddedToken] | None = None,
) -> Tokenizer:
    """CLIP's tokenizer.

    Args:
        vocab: token to number, as in vocab.json.
        merges: pairs of tokens, most frequent first, as in merges.txt.
        context_length: tokens of a caption, marks included.
        begin: the mark before the text.
        end: the mark behind it.
        pad: what fills up: the end mark in Stable Diffusion 1, `!` (token 0) in OpenCLIP and Stable Diffusion 2.
        unknown: stands for what the vocabulary cannot write; a complete one has every byte and never needs it.
        recognised: tokens found where a text spells them, by number; begin and end by default.

    Raises:
        UserError: a special token is missing, or the merges or the recognised tokens do not fit the vocabulary.
    """
    _require(vocab, unknown)
    tokenizer = Tokenizer(_bpe(vocab, merges, unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    recognise(tokenizer, _numbered(vocab, begin, end) if recognised is None else recognised)
    frame(tokenizer, context_length, begin=begin, end=end, pad=pad)
    return tokenizer


def _bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], unknown: str) -> models.BPE:
    if not any(token.endswith(WORD_END) for token in vocab):
        raise UserError(f"no token ends in {WORD_END}, as those of CLIP do: this is another kind of tokenizer")
    for number, (left, right) in enumerate(merges, start=1):
        missing = [token for token in (left, right, left + right) if token not in vocab]
        if missing:
            raise UserError(f"merge {number}, '{left} {right}', needs {missing[0]!r}, which is not in the vocabulary")
    return models.BPE(
        dict(vocab), list(merges), unk_token=unknown, continuing_subword_prefix="", end_of_word_suffix=WORD_END
    )


def wordpiece_tokenizer(
    vocab: Mapping[str, int],
    context_length: int = 77,
    *,
    begin: str = "[CLS]",
    end: str = "[SEP]",
    pad: str = "[PAD]",
    unknown: str = "[UNK]",
    recognised: Mapping[int, AddedToken] | None = None,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    split_chinese: bool = True,
) -> Tokenizer:
    """BERT's tokenizer, which LDM's text transformer and MiniLM use too.

    Args:
        vocab: token to number: the lines of vocab.txt.
        context_length: tokens of a caption, marks included; 77 in LDM.
        begin: the mark before the text.
        end: the mark behind it.
        pad: what fills up.
        unknown: stands for a word that the vocabulary cannot write.
        recognised: tokens found where a text spells them, by number; the four and `[MASK]` by default.
        lowercase: whether the vocabulary is of an `uncased` model.
        strip_accents: whether accents are dropped; by default where case is.
        split_chinese: whether every Chinese character is a word.

    Raises:
        UserError: a special token is missing, or the recognised tokens do not fit the vocabulary.
    """
    _require(vocab, unknown)
    tokenizer = Tokenizer(models.WordPiece(dict(vocab), unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    if recognised is None:
        recognised = _numbered(vocab, begin, end, pad, unknown, "[MASK]")
    recognise(tokenizer, recognised)
    frame(tokenizer, context_length, begin=begin, end=end, pad=pad)
    return tokenizer


def _numbered(vocab: Mapping[str, int], *tokens: str) -> dict[int, AddedToken]:
    _require(vocab, *tokens)
    return {vocab[token]: special(token) for token in tokens}


def _require(vocab: Mapping[str, int], *tokens: str) -> None:
    for token in tokens:
        if token not in vocab:
            raise UserError(f"the special token {token!r} is missing from the vocabulary")


def recognise(tokenizer: Tokenizer, tokens: Mapping[int, AddedToken]) -> None:
    """Let tokens, given by number, be found where a text spells them; those behind the vocabulary enlarge it.

    Raises:
        UserError: the vocabulary has a token under another number, or numbers would be left out.
    """
    for number, token in sorted(tokens.items(), key=lambda item: item[0]):
        tokenizer.add_tokens([token])
        found = tokenizer.token_to_id(token.content)
        if found != number:
            raise UserError(f"the added token {token.content!r} says that its number is {number}, but it is {found}")
