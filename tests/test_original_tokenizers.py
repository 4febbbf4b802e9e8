"""Tokenizers beside files of the original code: one folder for each text encoder, and which does not fit."""

import dataclasses
from pathlib import Path

import pytest
from test_original_files import TOKENIZER, clip
from tokenizers import Tokenizer

from ldm_jax.conditioning.tokenizer import Marks, read_marks, train_tokenizer
from ldm_jax.config import ClassConditioning, ClipTextConditioning, SdxlConditioning, TextConditioning
from ldm_jax.errors import UserError
from ldm_jax.interop.original.tokenizers import read_tokenizers, write_tokenizers


def open_clip() -> ClipTextConditioning:
    return dataclasses.replace(clip(), projection_dim=32, pad_token=0)


def test_open_clip_fills_up_with_another_token_of_the_same_vocabulary() -> None:
    config, tokenizers = read_tokenizers(TOKENIZER, SdxlConditioning(first=clip(), second=open_clip()))
    assert config == SdxlConditioning(first=clip(), second=open_clip())
    first, second = (tokenizers[name].encode("a").ids for name in ("tokens", "tokens_2"))
    end = clip().end_token
    text = first.index(end)
    assert second[: text + 1] == first[: text + 1]
    assert set(first[text + 1 :]) == {end} and set(second[text + 1 :]) == {0}
    assert tokenizers["tokens_2"].id_to_token(0) == "!"


def test_a_clip_that_is_written_has_the_tokenizer_s_marks() -> None:
    unknown = dataclasses.replace(clip(), begin_token=1, end_token=2, pad_token=3)
    config, tokenizers = read_tokenizers(TOKENIZER, unknown)
    assert config == clip()
    assert read_marks(tokenizers["tokens"]) == Marks(clip().begin_token, clip().end_token, clip().pad_token)


def test_a_text_encoder_that_was_trained_here_takes_captions_again() -> None:
    boxes = TextConditioning(tokens="boxes", vocab_size=600, context_length=7)
    config, tokenizers = read_tokenizers(TOKENIZER, boxes)
    assert isinstance(config, TextConditioning) and config.tokens == "captions"
    assert config.end_token == clip().end_token and len(tokenizers["tokens"].encode("a").ids) == 7


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        (
            ClipTextConditioning(),
            r"a vocabulary of 527 entries, the text encoder one of 49408; give the tokenizer that",
        ),
        (
            TextConditioning(vocab_size=99),
            "a vocabulary of 527 entries, the text encoder one of 99; give the tokenizer",
        ),
        (ClassConditioning(), r"^--tokenizer .* is for a model that takes prompts; this one has ClassConditioning$"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(conditioning, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_tokenizers(TOKENIZER, conditioning)


def test_two_vocabularies_cannot_be_written(tmp_path: Path) -> None:
    def trained(caption: str) -> Tokenizer:
        return train_tokenizer([caption] * 3, 300, 8)

    with pytest.raises(UserError, match="the tokenizers of the two text encoders differ; in the original code both"):
        write_tokenizers({"tokens": trained("red circle"), "tokens_2": trained("blue square")}, tmp_path)
