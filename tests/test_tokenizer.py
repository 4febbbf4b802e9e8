"""The tokenizer: every script comes through, and every fault is said in words."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_jax.conditioning.tokenizer import (
    BEGIN,
    END,
    PAD,
    CaptionEncoder,
    empty_tokens,
    load_tokenizer,
    train_tokenizer,
)
from ldm_jax.errors import UserError

CAPTIONS = ["red apple", "green apple, fruit", "angry cat face", "grinning face with big eyes", "flag: Germany"] * 5
TOKENIZER = train_tokenizer(CAPTIONS, vocab_size=300)
ENCODER = CaptionEncoder(TOKENIZER, context_length=16)


def words(tokens: np.ndarray) -> list[int]:
    """The tokens between the marks."""
    tokens = tokens.tolist()
    assert tokens[0] == BEGIN
    end = tokens.index(END)
    assert set(tokens[end + 1 :]) <= {PAD}
    return tokens[1:end]


def test_tokens_are_begin_text_end_and_padding() -> None:
    tokens = ENCODER("red apple")
    assert (tokens.shape, tokens.dtype) == ((16,), np.int32)
    assert 0 < len(words(tokens)) < 9
    assert TOKENIZER.decode(words(tokens)).strip() == "red apple"


@pytest.mark.parametrize("nothing", ["", "   ", "\n\t"])
def test_the_empty_prompt_is_the_empty_condition(nothing: str) -> None:
    np.testing.assert_array_equal(ENCODER(nothing), empty_tokens(16))


@pytest.mark.parametrize("same", ["RED apple", "  red \n apple ", "\uff52\uff45\uff44 apple"])
def test_case_spaces_and_widths_do_not_matter(same: str) -> None:
    np.testing.assert_array_equal(ENCODER(same), ENCODER("red apple"))


def test_frequent_words_become_one_token() -> None:
    assert len(words(ENCODER("apple"))) == 1
    assert len(words(ENCODER("zebra"))) > 3


@pytest.mark.parametrize("text", ["猫の顔", "кошка", "تفاحة", "🍎", "naïve café", "a\u0301"])
def test_other_scripts_come_through_although_no_caption_had_them(text: str) -> None:
    tokens = words(CaptionEncoder(TOKENIZER, 64)(text))
    assert max(tokens) < TOKENIZER.get_vocab_size()
    assert TOKENIZER.decode(tokens).strip() == TOKENIZER.normalizer.normalize_str(text)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_any_text_fits_and_round_trips(text: str) -> None:
    tokens = CaptionEncoder(TOKENIZER, 512)(text)
    assert tokens.shape == (512,)
    assert TOKENIZER.decode(words(tokens)).strip() == TOKENIZER.normalizer.normalize_str(text).strip()


@pytest.mark.parametrize("text", ["<end> apple", "<pad>", "red <begin>"])
def test_marks_written_in_a_prompt_are_text(text: str) -> None:
    inside = words(ENCODER(text))
    assert not {PAD, BEGIN, END} & set(inside)
    assert TOKENIZER.decode(inside).strip() == text


def test_a_long_prompt_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = CaptionEncoder(TOKENIZER, 6, warn=True)
    with caplog.at_level(logging.WARNING):
        encoder("red apple")
        assert not caplog.records
        tokens = encoder("apple apple face face apple apple")
    assert [r.getMessage() for r in caplog.records] == [
        "the prompt has 6 tokens and 4 fit; it was cut after: apple apple face face"
    ]
    assert tokens[-1] == END and TOKENIZER.decode(words(tokens)).strip() == "apple apple face face"


def test_a_cut_inside_a_character_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    CaptionEncoder(TOKENIZER, 7, warn=True)("猫猫猫")
    assert caplog.records[0].getMessage().endswith("it was cut after: 猫")


def test_captions_of_the_training_data_are_cut_silently(caplog: pytest.LogCaptureFixture) -> None:
    CaptionEncoder(TOKENIZER, 4)("apple apple face face apple apple")
    assert not caplog.records


def test_a_prompt_that_is_not_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"'\\udcff' is not valid Unicode; write the prompt in UTF-8"):
        ENCODER("\udcff")


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    message = r"conditioning\.vocab_size=258 cannot hold the bytes; use at least 259"
    with pytest.raises(UserError, match=message):
        train_tokenizer(CAPTIONS, vocab_size=258)
    assert train_tokenizer(CAPTIONS, vocab_size=259).get_vocab_size() == 259


def test_the_vocabulary_is_no_larger_than_asked() -> None:
    assert TOKENIZER.get_vocab_size() == 300
    assert train_tokenizer(["a"], vocab_size=5000).get_vocab_size() < 300


def test_training_is_deterministic_and_does_not_need_captions() -> None:
    assert train_tokenizer(CAPTIONS, 300).to_str() == TOKENIZER.to_str()
    assert len(words(CaptionEncoder(train_tokenizer([], 300), 16)("cat"))) >= 3


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(str(path))
    loaded = CaptionEncoder(load_tokenizer(path), 16)
    for text in (*CAPTIONS[:5], "猫の顔", "<end>", "Éa"):
        np.testing.assert_array_equal(loaded(text), ENCODER(text))


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: a text-conditional run cannot be used without"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{}", TOKENIZER.to_str().encode()[:2000], b"\xff\xfe\x00"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged \(.+\); restore it from a copy of the run"):
        load_tokenizer(path)
