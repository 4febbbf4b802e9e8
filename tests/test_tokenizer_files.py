"""Tokenizer folders of transformers: golden tokens, every text, every fault, and both ways."""

import json
import random
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from ldm_jax.conditioning.tokenizer import CaptionEncoder, Marks, empty_tokens, read_marks, train_tokenizer
from ldm_jax.errors import UserError
from ldm_jax.interop.transformers.tokenizer_files import read_tokenizer, write_clip_tokenizer
from ldm_jax.interop.transformers.tokenizer_models import WORD_END, clip_tokenizer, wordpiece_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "pipeline_sd1"
TOY = GOLDEN / "tokenizer"
BEGIN, END, LENGTH = 525, 526, 16
ENCODE = CaptionEncoder(read_tokenizer(TOY))
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "!", "e", "猫"]
NORMALIZED = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def toy(path: Path, *, without: tuple[str, ...] = (), **config: Any) -> Path:
    """A copy of the toy folder with other options, and without some files; an option `None` is left out."""
    path.mkdir()
    for file in TOY.iterdir():
        if file.name not in without:
            shutil.copyfile(file, path / file.name)
    edit(path / "tokenizer_config.json", lambda old: {k: v for k, v in (old | config).items() if v is not None})
    return path


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change what a JSON file holds."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def bert(path: Path, pieces: list[str], **config: Any) -> Path:
    """A folder of a BertTokenizer."""
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    given = {"tokenizer_class": "BertTokenizer", "model_max_length": 8} | config
    (path / "tokenizer_config.json").write_text(json.dumps(given))
    return path


# --- CLIP


@pytest.mark.parametrize("without", [(), ("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_golden_tokens_whichever_files_hold_the_vocabulary(tmp_path: Path, without: tuple[str, ...]) -> None:
    encode = CaptionEncoder(read_tokenizer(toy(tmp_path / "toy", without=without)))
    prompts = json.loads((GOLDEN / "io.json").read_text())["prompts"]
    expected = np.load(GOLDEN / "io.npz")["input_ids"]
    np.testing.assert_array_equal(np.stack([encode(prompt) for prompt in prompts]), expected)


def test_a_folder_without_a_config_is_judged_by_its_files(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", without=("tokenizer.json",))
    (folder / "tokenizer_config.json").unlink()
    np.testing.assert_array_equal(CaptionEncoder(read_tokenizer(folder, 16))("a red cat"), ENCODE("a red cat"))


UNICODE = st.text(st.characters(blacklist_categories=("Cs",)), max_size=60)
SPELLED = st.lists(
    st.sampled_from(["<|endoftext|>", "<|startoftext|>", "'s", "&amp;", "cat", " ", "\x00", "é", "👩‍👧"])
)


@settings(max_examples=100)
@given(UNICODE | SPELLED.map("".join))
def test_any_text_has_tokens_and_a_saved_tokenizer_gives_the_same(text: str) -> None:
    tokens = ENCODE(text)
    assert (tokens.shape, tokens.dtype) == ((LENGTH,), np.int32)
    assert tokens[0] == BEGIN and END in tokens
    saved = Tokenizer.from_str(read_tokenizer(TOY).to_str())
    np.testing.assert_array_equal(CaptionEncoder(saved, warn=True)(text), tokens)


def test_half_a_character_pair_is_refused() -> None:
    with pytest.raises(UserError, match=r"'\\ud83d' is not valid Unicode; write the prompt in UTF-8"):
        ENCODE("\ud83d")


def test_case_spaces_and_composition_do_not_matter_but_html_does() -> None:
    np.testing.assert_array_equal(ENCODE(" Cafe\u0301\n CAT"), ENCODE("caf\u00e9 cat"))
    assert ENCODE("&amp;").tolist() != ENCODE("&").tolist()
    np.testing.assert_array_equal(CaptionEncoder(read_tokenizer(TOY), unescape_html=True)("&amp;"), ENCODE("&"))


def test_special_tokens_in_a_prompt_are_recognised_as_in_clip() -> None:
    assert ENCODE("cat<|endoftext|>")[:4].tolist() == [BEGIN, ENCODE("cat")[1], END, END]


def test_the_warning_quotes_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    CaptionEncoder(read_tokenizer(TOY, 4), warn=True)("The CAT, on  the mat")
    (record,) = caplog.records
    assert record.getMessage() == "the prompt has 8 tokens and 2 fit; it was cut after: The CAT"


def test_padding_of_the_two_stable_diffusions(tmp_path: Path) -> None:
    assert read_marks(read_tokenizer(TOY)) == Marks(BEGIN, END, END)
    two = read_tokenizer(toy(tmp_path / "two", pad_token="!"))
    assert read_marks(two) == Marks(BEGIN, END, 0)
    np.testing.assert_array_equal(CaptionEncoder(two)(""), empty_tokens(LENGTH, BEGIN, END, 0))
    assert CaptionEncoder(two)("cat!")[2] == 0, "transformers takes its pad token out of a prompt"
    vocab, merges = toy_vocabulary()
    assert CaptionEncoder(clip_tokenizer(vocab, merges, pad="!"))("cat!")[2] == vocab[f"!{WORD_END}"], (
        "OpenCLIP does not"
    )


def toy_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The toy vocabulary and its merges."""
    lines = (TOY / "merges.txt").read_text().splitlines()[1:]
    return json.loads((TOY / "vocab.json").read_text()), [(a, b) for a, b in map(str.split, lines)]


def test_how_special_tokens_are_recognised_comes_from_the_folder(tmp_path: Path) -> None:
    end = {"__type": "AddedToken", "content": "<|endoftext|>", **NORMALIZED}
    written = toy(tmp_path / "a", without=("tokenizer.json",), eos_token=end, unk_token=end, pad_token="!")
    assert CaptionEncoder(read_tokenizer(written))("<|EndOfText|>")[1] == END
    assert ENCODE("<|EndOfText|>")[1] != END
    mapped = toy(tmp_path / "b", without=("tokenizer.json",), eos_token=None, pad_token=None)
    token = {"content": "<|endoftext|>", **NORMALIZED}
    (mapped / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": token, "unk_token": token, "pad_token": "!"})
    )
    assert CaptionEncoder(read_tokenizer(mapped))("<|EndOfText|>")[1] == END


def test_added_tokens_enlarge_the_vocabulary(tmp_path: Path) -> None:
    new = {"content": "<new>", "special": False, **NORMALIZED}
    in_config = toy(tmp_path / "a", added_tokens_decoder={"527": new})
    beside = toy(tmp_path / "b", without=("tokenizer.json",), additional_special_tokens=["<new>"])
    (beside / "added_tokens.json").write_text('{"<new>": 527}')
    for folder in (in_config, beside):
        assert CaptionEncoder(read_tokenizer(folder))("cat<new>")[2] == 527
    edit(in_config / "tokenizer_config.json", lambda old: old | {"added_tokens_decoder": {"530": new}})
    with pytest.raises(UserError, match=r"a: the added token '<new>' says that its number is 530, but it is 527"):
        read_tokenizer(in_config)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_what_is_written_is_read_as_the_same(tmp_path: Path, pad: str) -> None:
    original = read_tokenizer(toy(tmp_path / "toy", pad_token=pad))
    write_clip_tokenizer(original, tmp_path / "written")
    assert {file.name for file in (tmp_path / "written").iterdir()} == {
        *("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    }
    assert json.loads(read_tokenizer(tmp_path / "written").to_str()) == json.loads(original.to_str())


def test_only_clip_is_written_as_clip(tmp_path: Path) -> None:
    for other in (train_tokenizer(["a"], 300, 8), wordpiece_tokenizer({p: i for i, p in enumerate(PIECES)})):
        with pytest.raises(UserError, match=r"only CLIP's tokenizer can be written for CLIPTokenizer"):
            write_clip_tokenizer(other, tmp_path)


def test_writing_says_which_prompts_transformers_will_read_differently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_clip_tokenizer(clip_tokenizer(*toy_vocabulary(), pad="!"), tmp_path)
    assert [r.getMessage() for r in caplog.records] == [
        "transformers takes ! in a prompt for the special token; here it is text"
    ]


# --- WordPiece, and tokenizers that are whole


def test_word_pieces(tmp_path: Path) -> None:
    encode = CaptionEncoder(read_tokenizer(bert(tmp_path / "bert", PIECES)))
    assert encode("The CATS! é dog猫").tolist() == [2, 5, 6, 7, 8, 9, 1, 3]
    assert encode("").tolist() == [2, 3, 0, 0, 0, 0, 0, 0]
    assert encode("[MASK] [mask]").tolist()[:3] == [2, 4, 1]
    assert CaptionEncoder(read_tokenizer(tmp_path / "bert", 77))("cat").shape == (77,), "as LDM asks for it"


def test_options_of_word_pieces(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", PIECES, do_lower_case=False, strip_accents=True, tokenize_chinese_chars=False)
    assert CaptionEncoder(read_tokenizer(folder))("Cat é 猫猫").tolist()[:5] == [2, 1, 9, 1, 3]


def test_a_whole_tokenizer_keeps_its_own_marks(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16})
    )
    (tmp_path / "tokenizer.json").write_text(read_tokenizer(TOY, 5).to_str())
    np.testing.assert_array_equal(CaptionEncoder(read_tokenizer(tmp_path))("the cat"), ENCODE("the cat"))


# --- faults


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"tokenizer_class": "T5Tokenizer"},
            r"tokenizer_class='T5Tokenizer'; known are CLIPTokenizer, CLIPTokenizerFast,",
        ),
        ({"padding_side": "left"}, r"toy has padding_side='left'; only 'right' is supported"),
        ({"split_special_tokens": True}, r"toy has split_special_tokens=True; only False is supported"),
        (
            {"model_max_length": 10**30},
            r"how many tokens its model takes \(model_max_length=10+\); give context_length",
        ),
        ({"model_max_length": 2}, r"toy: context_length=2 has no room for text beside 2 marks"),
        ({"bos_token": "<s>"}, r"toy: the special token '<s>' is missing from the vocabulary"),
        ({"bos_token": 3}, r"toy is damaged \(it has 3 for a special token\)"),
        ({"added_tokens_decoder": []}, r"toy is damaged \(it has added_tokens_decoder=\[\]\)"),
        ({"added_tokens_decoder": {"x": "<s>"}}, r"toy is damaged \(an added token has the number 'x'\)"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = toy(tmp_path / "toy", **config)
    with pytest.raises(UserError, match=message):
        read_tokenizer(folder)


def test_no_token_for_a_role(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy")
    edit(folder / "tokenizer_config.json", lambda old: old | {"pad_token": None})
    with pytest.raises(UserError, match="toy has no pad_token, which its tokenizer needs"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (b"[1", r"vocab\.json is damaged \(.+\); restore it from the model's source"),
        (b"[1]", r"vocab\.json is damaged \(a JSON list, not an object\)"),
        (b"\xff", r"vocab\.json cannot be read \(.+\)"),
        (b"{}", r"vocab\.json is damaged \(it has no tokens\)"),
        (b'{"a": "0"}', r"vocab\.json is damaged \(the number of token 'a' is '0'\)"),
        (
            b'{"a": 0, "b": 2}',
            r"vocab\.json is damaged \(its 2 tokens are not numbered 0 to 1: 2 stands where 1 should\)",
        ),
        (b'{"<|endoftext|>": 0, "<|startoftext|>": 1}', r"no token ends in </w>, as those of CLIP do"),
        (b'{"a</w>": 0, "<|startoftext|>": 1}', r"the special token '<\|endoftext\|>' is missing from the vocabulary"),
        (
            b'{"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}',
            r"toy: merge 1, 't h', needs 't', which is not in the vocabulary",
        ),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path: Path, vocab: bytes, message: str) -> None:
    folder = toy(tmp_path / "toy", without=("tokenizer.json",))
    (folder / "vocab.json").write_bytes(vocab)
    with pytest.raises(UserError, match=message):
        read_tokenizer(folder)


@pytest.mark.parametrize("line", ["th", "t h e", "t  h", "", " h"])
def test_a_damaged_merge_is_named(tmp_path: Path, line: str) -> None:
    folder = toy(tmp_path / "toy", without=("tokenizer.json",))
    (folder / "merges.txt").write_text(f"#version: 0.2\nt h\n{line}\nr e\n")
    with pytest.raises(UserError, match=rf"merges\.txt, line 3, is not two tokens with a space between them: '{line}'"):
        read_tokenizer(folder)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = toy(tmp_path / "toy", without=("tokenizer.json", missing))
    with pytest.raises(UserError, match=rf"{missing} is missing; restore it from the model's source"):
        read_tokenizer(folder)


def test_two_vocabularies_are_one_too_many(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy")
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    with pytest.raises(UserError, match=r"toy: tokenizer\.json differs from vocab\.json and merges\.txt"):
        read_tokenizer(folder)
    other = bert(tmp_path / "bert", PIECES)
    (other / "tokenizer.json").write_text(wordpiece_tokenizer({p: i for i, p in enumerate(PIECES[:-1])}).to_str())
    with pytest.raises(UserError, match=r"bert: tokenizer\.json differs from vocab\.txt; delete what is wrong"):
        read_tokenizer(other)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([*PIECES, "", "dog"], r"vocab\.txt, line 12, has no token"),
        ([*PIECES, "the"], r"vocab\.txt, line 12, repeats line 6: 'the'"),
        (PIECES[1:], r"the special token '\[PAD\]' is missing from the vocabulary"),
    ],
)
def test_damaged_word_pieces_are_named(tmp_path: Path, pieces: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_tokenizer(bert(tmp_path / "bert", pieces))


def test_flags_are_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bert has do_lower_case='yes'; use true or false"):
        read_tokenizer(bert(tmp_path / "bert", PIECES, do_lower_case="yes"))


def test_a_tokenizer_json_of_another_kind_or_damaged(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy", without=("vocab.json", "merges.txt"), tokenizer_class="BertTokenizer")
    with pytest.raises(
        UserError, match=r"tokenizer\.json has no WordPiece vocabulary, which the folder's tokenizer class"
    ):
        read_tokenizer(folder)
    edit(folder / "tokenizer_config.json", lambda old: old | {"tokenizer_class": "CLIPTokenizer"})
    assert CaptionEncoder(read_tokenizer(folder))("cat").tolist() == ENCODE("cat").tolist()
    edit(folder / "tokenizer.json", lambda old: old | {"model": old["model"] | {"merges": ["th"]}})
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged \(.+\); restore it from the model's source"):
        read_tokenizer(folder)


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no tokenizer in it: none of tokenizer_config\.json, vocab\.json, vocab\.txt"
    ):
        read_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"nowhere is not a folder; give the folder of a tokenizer"):
        read_tokenizer(tmp_path / "nowhere")


# --- against transformers

SPELLINGS = (
    *("<|endoftext|>", "<|startoftext|>", "<|EndOfText|>", "[CLS]", "[cls]", "[MASK]", "[UNK]", "[PAD]", "</w>", "##s"),
    *("&amp;", "&lt;br&gt;", "&#39;", "'s", "'LL", "'Re", "don't", "!", "!!", "__", "--", "<new>", "<NEW>"),
    *(" ", "\t", "\n", "\r", "\x00", "\x1c", "\x85", "\xa0", "\u200b", "\u200d", "\ufffd", "\ufeff", "½", "²", "٣"),
    *("é", "e\u0301", "ﬃ", "İ", "ß", "ς", "猫", "한국", "ｆｕｌｌ", "👩‍👩‍👧", "🏳️‍🌈", "เชียงใหม่"),  # noqa: RUF001
)


def openmoji_captions() -> list[str]:
    """The captions that come with the package."""
    lines = files("ldm_jax.data").joinpath("openmoji_captions.tsv").read_text(encoding="utf-8").splitlines()
    return [", ".join(line.split("\t")[3:]) for line in lines]


def random_texts(seed: int, count: int) -> list[str]:
    """Characters of every script and none, things that tokenizers stumble over, and captions."""
    rng, captions = random.Random(seed), openmoji_captions()

    def character() -> str:
        return chr(rng.choice([rng.randrange(128), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))

    def text() -> str:
        size = rng.choice([0, 1, 2, 3, 5, 20, 100])
        kinds = (
            lambda: "".join(character() for _ in range(size)),
            lambda: "".join(rng.choice(SPELLINGS) + rng.choice(["", "", " "]) for _ in range(size)),
            lambda: " ".join(rng.choice(captions) for _ in range(size // 5)),
        )
        return rng.choice(kinds)()

    return [text() for _ in range(count)]


def assert_same_tokens(theirs: Any, folder: Path, count: int = 2000) -> None:
    """What transformers' tokenizer `theirs` says of random texts is what ours, read from `folder`, says."""
    encode = CaptionEncoder(read_tokenizer(folder))
    for text in random_texts(len(folder.name), count):
        expected = theirs(text, padding="max_length", truncation=True)["input_ids"]
        assert encode(text).tolist() == expected, repr(text)


def caption_clip(path: Path) -> Path:
    """A CLIP tokenizer trained on the captions, in the files of CLIP."""
    whole = read_tokenizer(TOY)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    tokenizer.normalizer, tokenizer.pre_tokenizer = whole.normalizer, whole.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    tokenizer.train_from_iterator(openmoji_captions(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    tokens = [*alphabet, *(c + WORD_END for c in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')
    return path


def caption_pieces() -> list[str]:
    """A WordPiece vocabulary of the captions."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=PIECES[:5], show_progress=False)
    tokenizer.train_from_iterator(openmoji_captions(), trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=lambda token: vocab[token])


def added(content: str, **options: Any) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": content, **NORMALIZED} | options


CLIP_OPTIONS: dict[str, dict[str, Any]] = {
    "golden": {},
    "sd2": {"pad_token": "!"},
    # In Stable Diffusion 1's own folder the end mark is written twice, in two ways.
    "sd1": {"without": ("tokenizer.json",), "eos_token": added("<|endoftext|>"), "bos_token": added("<|startoftext|>")},
    "stripping": {"without": ("tokenizer.json",), "bos_token": added("<|startoftext|>", lstrip=True, rstrip=True)},
    "saved": {"without": ("vocab.json", "merges.txt")},
    "enlarged": {"added_tokens_decoder": {"527": {"content": "<new>", "special": False, **NORMALIZED}}},
    "further": {"additional_special_tokens": ["th", "!"], "image_token": "cat</w>"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIP_OPTIONS)
def test_tokens_are_those_of_clip_in_transformers(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = toy(tmp_path / name, **CLIP_OPTIONS[name])
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    assert_same_tokens(theirs, folder)
    write_clip_tokenizer(read_tokenizer(folder), tmp_path / "written")
    assert_same_tokens(transformers.CLIPTokenizer.from_pretrained(tmp_path / "written"), folder, 500)


@pytest.mark.slow
def test_tokens_of_a_larger_vocabulary_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = caption_clip(tmp_path / "clip")
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    assert_same_tokens(theirs, folder, 4000)
    theirs.save_pretrained(tmp_path / "saved")
    assert_same_tokens(theirs, tmp_path / "saved", 500)
    write_clip_tokenizer(read_tokenizer(folder), tmp_path / "written")
    assert_same_tokens(transformers.CLIPTokenizer.from_pretrained(tmp_path / "written"), folder, 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"do_lower_case": False}, {"strip_accents": False, "tokenize_chinese_chars": False}]
)
def test_tokens_are_those_of_bert_in_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = bert(tmp_path / "bert", caption_pieces(), model_max_length=77, **options)
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    assert_same_tokens(theirs, folder)
    theirs.save_pretrained(tmp_path / "saved")
    assert_same_tokens(theirs, tmp_path / "saved", 500)


@pytest.mark.slow
def test_tokens_are_those_of_a_whole_tokenizer_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backend = transformers.CLIPTokenizer.from_pretrained(TOY).backend_tokenizer
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!", model_max_length=20)
    fast.save_pretrained(tmp_path / "whole")
    assert_same_tokens(transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "whole"), tmp_path / "whole")
