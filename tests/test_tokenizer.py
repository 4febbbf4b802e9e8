"""The tokenizer: every script comes through, and every fault is said in words."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from ldm_jax.conditioning.tokenizer import (
    BEGIN,
    END,
    PAD,
    CaptionEncoder,
    Marks,
    empty_tokens,
    fix_length,
    frame,
    load_tokenizer,
    read_marks,
    token_inputs,
    train_tokenizer,
)
from ldm_jax.config import TextConditioning
from ldm_jax.errors import UserError

CAPTIONS = ["red apple", "green apple, fruit", "angry cat face", "grinning face with big eyes", "flag: Germany"] * 5
TOKENIZER = train_tokenizer(CAPTIONS, vocab_size=300, context_length=16)
ENCODER = CaptionEncoder(TOKENIZER)
GOLDEN = Path(__file__).parent / "golden" / "tokenizer"


def of_length(context_length: int, *, warn: bool = False) -> CaptionEncoder:
    """The same tokenizer for another length."""
    return CaptionEncoder(train_tokenizer(CAPTIONS, 300, context_length), warn=warn)


LONG = of_length(512)


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
    tokens = words(LONG(text))
    assert max(tokens) < TOKENIZER.get_vocab_size()
    assert TOKENIZER.decode(tokens).strip() == TOKENIZER.normalizer.normalize_str(text)


@settings(max_examples=50)
@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_any_text_fits_and_round_trips(text: str) -> None:
    tokens = LONG(text)
    assert tokens.shape == (512,)
    assert TOKENIZER.decode(words(tokens)).strip() == TOKENIZER.normalizer.normalize_str(text).strip()


@pytest.mark.parametrize("text", ["<end> apple", "<pad>", "red <begin>"])
def test_marks_written_in_a_prompt_are_text(text: str) -> None:
    inside = words(ENCODER(text))
    assert not {PAD, BEGIN, END} & set(inside)
    assert TOKENIZER.decode(inside).strip() == text


def test_a_long_prompt_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    encoder = of_length(6, warn=True)
    with caplog.at_level(logging.WARNING):
        encoder("red apple")
        assert not caplog.records
        tokens = encoder("apple apple face face apple apple")
    assert [r.getMessage() for r in caplog.records] == [
        "the prompt has 6 tokens and 4 fit; it was cut after: apple apple face face"
    ]
    assert tokens[-1] == END and TOKENIZER.decode(words(tokens)).strip() == "apple apple face face"


def test_a_cut_inside_a_character_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    of_length(7, warn=True)("猫猫猫")
    assert caplog.records[0].getMessage().endswith("it was cut after: 猫")


def test_a_warning_quotes_the_prompt_as_it_was_written(caplog: pytest.LogCaptureFixture) -> None:
    of_length(4, warn=True)("  Apple\nAPPLE face")
    assert caplog.records[0].getMessage() == "the prompt has 3 tokens and 2 fit; it was cut after: Apple\nAPPLE"


def test_captions_of_the_training_data_are_cut_silently(caplog: pytest.LogCaptureFixture) -> None:
    of_length(4)("apple apple face face apple apple")
    assert not caplog.records


def test_a_prompt_that_is_not_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"'\\udcff' is not valid Unicode; write the prompt in UTF-8"):
        ENCODER("\udcff")


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    message = r"conditioning\.vocab_size=258 cannot hold the bytes; use at least 259"
    with pytest.raises(UserError, match=message):
        train_tokenizer(CAPTIONS, vocab_size=258, context_length=16)
    assert train_tokenizer(CAPTIONS, vocab_size=259, context_length=16).get_vocab_size() == 259


def test_marks_can_have_the_numbers_of_another_tokenizer() -> None:
    """As in BERT's vocabulary: padding first, then unused tokens, and the marks at 101 and 102."""
    marks = Marks(begin=101, end=102, pad=0)
    tokenizer = train_tokenizer(CAPTIONS, 400, 16, marks)
    assert read_marks(tokenizer) == marks
    tokens = CaptionEncoder(tokenizer)("red <unused7> apple").tolist()
    inside = tokens[1 : tokens.index(102)]
    assert tokens[0] == 101 and min(inside) > 102
    assert tokenizer.decode(inside).strip() == "red <unused7> apple"
    with pytest.raises(UserError, match="cannot hold the bytes; use at least 359"):
        train_tokenizer(CAPTIONS, 300, 16, marks)


def test_the_vocabulary_is_no_larger_than_asked() -> None:
    assert TOKENIZER.get_vocab_size() == 300
    assert train_tokenizer(["a"], vocab_size=5000, context_length=16).get_vocab_size() < 300


def test_training_is_deterministic_and_does_not_need_captions() -> None:
    assert train_tokenizer(CAPTIONS, 300, 16).to_str() == TOKENIZER.to_str()
    assert len(words(CaptionEncoder(train_tokenizer([], 300, 16))("cat"))) >= 3


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(str(path))
    loaded = CaptionEncoder(load_tokenizer(path, 16))
    for text in (*CAPTIONS[:5], "猫の顔", "<end>", "Éa"):
        np.testing.assert_array_equal(loaded(text), ENCODER(text))


def test_a_tokenizer_of_the_first_runs_gives_the_same_tokens() -> None:
    path = GOLDEN / "tokenizer.json"
    assert json.loads(path.read_text())["post_processor"] is None  # marks and length were in the code
    encoder = CaptionEncoder(load_tokenizer(path, 16))
    for text, tokens in json.loads((GOLDEN / "ids.json").read_text()).items():
        assert encoder(text).tolist() == tokens
        assert ENCODER(text).tolist() == tokens, "the same captions train the same tokenizer"


def test_a_saved_tokenizer_knows_its_length_and_its_marks(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_str())
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded.encode("<end> red apple").ids == ENCODER("<end> red apple").tolist()


def test_a_tokenizer_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_str())
    message = (
        r"tokenizer\.json writes 16 tokens, but conditioning\.context_length=8; restore the tokenizer that belongs"
    )
    with pytest.raises(UserError, match=message):
        load_tokenizer(path, 8)


def test_the_marks_give_the_empty_prompt() -> None:
    assert read_marks(TOKENIZER) == Marks(begin=BEGIN, end=END, pad=PAD)
    clip = empty_tokens(5, begin=49406, end=49407, pad=0)
    assert (clip.tolist(), clip.dtype) == ([49406, 49407, 0, 0, 0], np.int32)


def word_level() -> Tokenizer:
    """A tokenizer that is not ours and has no marks yet."""
    return Tokenizer(models.WordLevel({"<b>": 0, "<e>": 1, "cat": 2, "<p>": 3}, unk_token="<p>"))


def test_any_tokenizer_can_be_framed() -> None:
    tokenizer = word_level()
    frame(tokenizer, 4, begin="<b>", end="<e>", pad="<p>")
    assert CaptionEncoder(tokenizer)("cat").tolist() == [0, 2, 1, 3]
    np.testing.assert_array_equal(CaptionEncoder(tokenizer)(""), empty_tokens(4, *read_marks(tokenizer)))


def test_marks_that_are_not_around_the_text_are_refused() -> None:
    tokenizer = word_level()
    fix_length(tokenizer, 4, pad="<p>")
    assert CaptionEncoder(tokenizer)("cat").tolist() == [2, 3, 3, 3]
    frame(tokenizer, 4, begin="<b>", end="<e>", pad="<p>")
    tokenizer.enable_padding(length=4, pad_id=3, pad_token="<p>", direction="left")
    with pytest.raises(UserError, match=r"empty prompt as \[3, 3, 0, 1\]\.\.\., not as begin, end and padding"):
        read_marks(tokenizer)


def test_a_frame_needs_its_marks_and_room() -> None:
    with pytest.raises(UserError, match=r"the special token '<s>' is missing from the vocabulary"):
        frame(word_level(), 4, begin="<s>", end="<e>", pad="<p>")
    with pytest.raises(UserError, match=r"context_length=2 has no room for text beside 2 marks"):
        frame(word_level(), 2, begin="<b>", end="<e>", pad="<p>")
    with pytest.raises(ValueError, match="the tokenizer has no fixed length"):
        CaptionEncoder(word_level())


@pytest.mark.parametrize("written", ["red &amp; apple", "red &amp;amp; apple"])
def test_html_is_text_unless_asked(written: str) -> None:
    clean = CaptionEncoder(TOKENIZER, unescape_html=True)
    np.testing.assert_array_equal(clean(written), ENCODER("red & apple"))
    assert ENCODER(written).tolist() != clean(written).tolist()


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing: a text-conditional run cannot be used without"):
        load_tokenizer(tmp_path / "tokenizer.json", 16)


@pytest.mark.parametrize("content", [b"", b"{}", TOKENIZER.to_str().encode()[:2000], b"\xff\xfe\x00"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged \(.+\); restore it from a copy of the run"):
        load_tokenizer(path, 16)


def test_boxes_are_tokens_without_a_tokenizer() -> None:
    assert token_inputs(TextConditioning(context_length=9)) == {"tokens": 9}
    assert token_inputs(TextConditioning(context_length=9, tokens="boxes")) == {}
