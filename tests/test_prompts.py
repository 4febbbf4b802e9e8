"""Prompts: their weights, their chunks, the files they come from, and the way from one to another."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import request_for
from hypothesis import given
from hypothesis import strategies as st
from test_session import make_session

from ldm_jax.conditioning.clip_text import ClipTextTransformer, SdxlConditioner
from ldm_jax.conditioning.conditions import Conditions
from ldm_jax.conditioning.prompt_chunks import (
    chunk_inputs,
    condition_on_chunks,
    prompt_chunks,
    token_chunks,
    weigh,
)
from ldm_jax.conditioning.prompt_syntax import WeightedText, parse_weights
from ldm_jax.conditioning.tokenizer import CaptionEncoder, PromptEncoder, train_tokenizer
from ldm_jax.config import ClipTextConditioning, SdxlConditioning
from ldm_jax.errors import UserError
from ldm_jax.sampling.interpolation import interpolate_conditions, interpolate_noise, lerp, slerp
from ldm_jax.sampling.picture_inputs import PictureInputs
from ldm_jax.sampling.prompt_files import PromptLine, read_prompts
from ldm_jax.sampling.session import Session

CAPTIONS = ["a red circle", "a blue square", "a green star", "a yellow triangle"]
LENGTH = 8
ENCODER = PromptEncoder({"tokens": train_tokenizer(CAPTIONS, 300, LENGTH)}, warn=True)
ONE = ENCODER.encoders["tokens"]
LONG = "a red circle a blue square a green star"

# --- syntax ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("a red cat", "a red cat", [1.0] * 9),
        ("a (red:1.3)", "a red", [1, 1, 1.3, 1.3, 1.3]),
        ("(a)", "a", [1.1]),
        ("[a]", "a", [1 / 1.1]),
        ("((a))b", "ab", [1.21, 1.0]),
        ("[[a]]", "a", [1 / 1.21]),
        ("([a])", "a", [1.0]),
        ("(a (b:1.5))", "a b", [1.1, 1.1, 1.65]),
        ("((a:0.5) b:2)", "a b", [1.0, 2.0, 2.0]),
        ("(a:0)(b: -1.5 )", "ab", [0.0, -1.5]),
        (r"\(a\) \[b\] \\", "(a) [b] \\", [1.0] * 9),
        (r"(\(a\):2)", "(a)", [2.0] * 3),
        ("a: b (c: d)", "a: b c: d", [1.0] * 5 + [1.1] * 4),
        ("a\\", "a\\", [1.0, 1.0]),
        ("a\n(b)", "a\nb", [1.0, 1.0, 1.1]),
        ("()", "", []),
        ("", "", []),
    ],
)
def test_weights_are_read_as_people_write_them(prompt: str, text: str, weights: list[float]):
    found = parse_weights(prompt)
    assert found.text == text
    np.testing.assert_allclose(found.weights, weights)


@pytest.mark.parametrize(
    ("prompt", "place", "reason"),
    [
        ("a (red", 3, "'(' is never closed"),
        ("a [red", 3, "'[' is never closed"),
        ("a red)", 6, "')' closes nothing; "),
        ("(a]", 3, "']' closes nothing inside '('"),
        ("(a:1.2.3)", 4, "'1.2.3' is not a number"),
        ("(a:1,3)", 4, "'1,3' is not a number"),
        ("(a:-)", 4, "'-' is not a number"),
        ("x [a:0.5]", 3, "[...:0.5] is no weight; write (...:0.5)"),
        ("(a:1e999)", 4, "'1e999' is not a number"),
    ],
)
def test_a_wrong_weight_is_named_with_its_place(prompt: str, place: int, reason: str):
    with pytest.raises(UserError) as error:
        parse_weights(prompt)
    message = str(error.value)
    assert message.startswith(f"the prompt {prompt!r} has a wrong weight at position {place} (")
    assert reason in message
    assert message.endswith(r"brackets that are meant are \( \) \[ \], or --prompt-syntax plain")


@given(st.text(alphabet="ab:1.(]\\) ", max_size=20))
def test_escaped_text_is_itself(text: str):
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    assert parse_weights(escaped).text == text
    assert (parse_weights(escaped).weights == 1).all()


# --- chunks ----------------------------------------------------------------------------------------------------------


def plain(text: str) -> WeightedText:
    return WeightedText(text, np.ones(len(text)))


def test_a_short_prompt_is_one_chunk_of_the_tokens_that_training_saw():
    chunks = token_chunks(ONE, plain("a red circle"))
    np.testing.assert_array_equal(chunks.tokens, [ONE("a red circle")])
    assert (chunks.weights == 1).all()


def test_a_long_prompt_becomes_chunks_with_marks_of_their_own_and_loses_nothing():
    chunks = token_chunks(ONE, plain(LONG))
    assert chunks.tokens.shape == (2, LENGTH)
    assert chunks.tokens[:, 0].tolist() == [1, 1]
    assert [(row == 2).sum() for row in chunks.tokens] == [1, 1]
    words = [ONE.tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in chunks.tokens]
    inside = "".join(words).replace("<begin>", "").replace("<end>", "").replace("<pad>", "")
    assert inside.strip() == LONG


def test_a_weight_belongs_to_the_tokens_of_its_words_alone():
    prompt = parse_weights("a (red:1.5) circle a blue square [a green star]")
    chunks = token_chunks(ONE, prompt)
    np.testing.assert_array_equal(chunks.tokens, token_chunks(ONE, plain(prompt.text)).tokens)
    flat = chunks.weights[chunks.tokens > 2]
    np.testing.assert_allclose(flat, [1, 1.5, 1, 1, 1, 1, *[1 / 1.1] * 3], rtol=1e-6)
    assert (chunks.weights[chunks.tokens <= 2] == 1).all(), "marks and padding weigh 1"


def test_a_prompt_can_be_cut_instead_and_that_is_said(caplog: pytest.LogCaptureFixture):
    chunks = token_chunks(ONE, plain(LONG), cut=True)
    np.testing.assert_array_equal(chunks.tokens, [ONE(LONG)])
    assert "it was cut after: a red circle a blue square" in caplog.text


def test_tokenizers_of_one_model_make_equally_many_chunks():
    two = PromptEncoder(
        {"tokens": train_tokenizer(CAPTIONS, 300, LENGTH), "tokens_2": train_tokenizer([], 300, LENGTH)}
    )
    chunks = prompt_chunks(two, plain("a red circle"))
    counts = [len(found.tokens) for found in chunks.values()]
    assert counts[0] == counts[1] > 1, "the other one knows no words, only bytes"
    np.testing.assert_array_equal(chunks["tokens"].tokens[1], ONE(""))


# --- contexts --------------------------------------------------------------------------------------------------------


def test_weights_scale_tokens_and_the_mean_stays():
    context = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, (2, 3, 4)), jnp.float32)
    weights = jnp.array([[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    found = weigh(context, weights)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), context.mean(axis=(1, 2)), rtol=1e-5)
    ratio = found[0] / context[0]
    np.testing.assert_allclose(ratio / ratio[0, 0], jnp.broadcast_to(weights[0][:, None], (3, 4)), rtol=1e-4)
    np.testing.assert_array_equal(found[1], context[1])
    assert np.isfinite(weigh(context, jnp.zeros((2, 3)))).all()


CLIP = ClipTextConditioning(
    vocab_size=300,
    context_length=LENGTH,
    context_dim=8,
    num_layers=1,
    num_heads=2,
    begin_token=1,
    end_token=2,
    pad_token=0,
)
SECOND = ClipTextConditioning(
    **{f: getattr(CLIP, f) for f in ("vocab_size", "context_length", "num_layers", "begin_token", "end_token")},
    context_dim=12,
    num_heads=3,
    projection_dim=6,
    pad_token=0,
)


@pytest.fixture(scope="module", params=["clip", "sdxl"])
def encoder(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, Any]]:
    """A text encoder with random parameters, how it is called, and its inputs for no prompt."""
    if request.param == "clip":
        module: Any = ClipTextTransformer(CLIP)
    else:
        module = SdxlConditioner(SdxlConditioning(first=CLIP, second=SECOND, size_dim=4, no_prompt="zeros"), 32)
    null = module.null_inputs(1)
    variables = jax.jit(module.init)(jax.random.key(0), null)
    return module, jax.jit(lambda inputs: module.apply(variables, inputs)), null


def inputs_of(null: dict[str, Any], *prompts: str) -> dict[str, Any]:
    """The inputs of an encoder for prompts of equally many chunks."""
    names = [name for name in null if name.startswith("tokens")]
    both = PromptEncoder({name: ONE.tokenizer for name in names})
    rows = [prompt_chunks(both, parse_weights(prompt)) for prompt in prompts]
    others = {name: jnp.repeat(x, len(prompts), axis=0) for name, x in null.items() if name not in names}
    return {**others, **{name: jnp.asarray(x) for name, x in chunk_inputs(rows).items()}}


def test_a_context_of_chunks_is_the_chunks_contexts_joined(encoder: tuple[Any, Any, dict[str, Any]]):
    module, condition, null = encoder
    inputs = inputs_of(null, LONG)
    found = condition_on_chunks(condition, module, inputs)
    parts = []
    for i in range(2):
        tokens = {name: x[:, i] for name, x in inputs.items() if x.ndim == 3 and not name.endswith("weights")}
        rest = {name: x for name, x in inputs.items() if name == "sizes"}
        parts.append(condition({**tokens, **rest}))
    np.testing.assert_allclose(found.context, np.concatenate([p.context for p in parts], axis=1), atol=1e-6)
    if found.vector is not None:
        np.testing.assert_allclose(found.vector, parts[0].vector, atol=1e-6)


def test_brackets_change_the_context_of_both_encoders(encoder: tuple[Any, Any, dict[str, Any]]):
    module, condition, null = encoder
    both = inputs_of(null, "a red circle", "a (red:1.5) circle")
    found = np.asarray(condition_on_chunks(condition, module, both).context)
    ends = np.cumsum([0, 8, 12] if "tokens_2" in null else [0, 8])
    for begin, end in itertools.pairwise(ends):
        ratio = found[1, :, begin:end] / found[0, :, begin:end]
        np.testing.assert_allclose(ratio[2] / ratio[1], 1.5, rtol=1e-3)
        np.testing.assert_allclose(ratio[3:] / ratio[1], 1.0, rtol=1e-3)


def test_inputs_that_are_no_chunks_are_encoded_as_they_are():
    given_ = {"tokens": jnp.zeros((2, LENGTH), jnp.int32)}
    seen = []

    def condition(inputs: Any) -> Conditions:
        seen.append(inputs)
        return Conditions()

    assert condition_on_chunks(condition, ClipTextTransformer(CLIP), given_) == Conditions()
    assert seen == [given_]


# --- of a picture ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(data_cache: Path) -> Session:
    return make_session(data_cache)


def test_a_short_negative_prompt_is_filled_up_to_the_prompts_chunks(session: Session):
    request = request_for(session, prompts=(LONG, "a red circle"), negative_prompts=("a blue square",), num_samples=1)
    inputs = PictureInputs(session, request)
    long, short = request.pictures
    assert (inputs.num_chunks(long), inputs.num_chunks(short)) == (2, 1), "a picture's own business, not its batch's"
    positive, negative, _ = inputs([long])
    assert positive["tokens"].shape == negative["tokens"].shape == (1, 2, LENGTH)
    np.testing.assert_array_equal(negative["tokens"][0, 1], session.null_inputs(1)["tokens"][0])
    plain_request = request_for(session, prompts=(LONG,), num_samples=1)
    _, empty, _ = PictureInputs(session, plain_request)(plain_request.pictures)
    assert (empty["tokens"] == session.null_inputs(1)["tokens"][0]).all()


@pytest.mark.parametrize(("how", "chunks"), [({}, 2), ({"long_prompts": "cut"}, 1)])
def test_long_prompts_are_chunks_unless_they_are_cut(session: Session, how: dict[str, Any], chunks: int):
    request = request_for(session, how=how, prompts=(LONG,), num_samples=1)
    assert PictureInputs(session, request).num_chunks(request.pictures[0]) == chunks


def test_brackets_can_be_text(session: Session):
    request = request_for(session, how={"prompt_syntax": "plain"}, prompts=("a (red",), num_samples=1)
    PictureInputs(session, request)
    with pytest.raises(UserError, match="position 3"):
        PictureInputs(session, request_for(session, prompts=("a (red",), num_samples=1))


def test_an_empty_prompt_is_said_once(session: Session, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        PictureInputs(session, request_for(session, prompts=("", " "), num_samples=2))
    assert caplog.text.count("an empty prompt draws without a condition") == 1


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_of_lines(tmp_path: Path):
    (tmp_path / "p.txt").write_text("a red circle\n\n  eine Möwe \n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == [PromptLine(prompt="a red circle"), PromptLine(prompt="eine Möwe")]


def test_a_file_of_json_lines(tmp_path: Path):
    lines = [{"prompt": "a", "negative": "b", "seed": 3, "guidance": 2}, {"prompt": "c"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_prompts(tmp_path / "p.jsonl") == [
        PromptLine(prompt="a", negative="b", seed=3, guidance=2.0),
        PromptLine(prompt="c"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", "holds no prompt; write one a line"),
        ("{", "line 1 is not JSON"),
        ('{"prompt": "a"}\n3', 'line 2 must be an object with a prompt, such as {"prompt": "a red apple"}'),
        ('{"promt": "a"}', "line 1 must be an object with a prompt"),
        ('{"prompt": "a", "sede": 1}', "has an unknown field 'sede'; known: prompt, negative, seed, guidance"),
        ('{"prompt": "a", "seed": "x"}', "has seed='x', which is no int"),
        ('{"prompt": "a", "seed": true}', "has seed=True, which is no int"),
        ('{"prompt": "a", "seed": -1}', "line 1 has seed=-1, which must lie between 0 and 2147483647"),
        ('{"prompt": "a", "guidance": NaN}', "line 1 has guidance=nan, which must lie between 0 and"),
        (f'{{"prompt": "a", "guidance": {"9" * 400}}}', "which must lie between 0 and"),
        ("[" * 100_000, "line 1 is not JSON (it is nested too deeply)"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        read_prompts(tmp_path / "p.jsonl")
    assert message in str(error.value)


def test_a_file_that_is_missing_or_no_text(tmp_path: Path):
    with pytest.raises(UserError, match=r"--prompts .*none cannot be read \(No such file"):
        read_prompts(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        read_prompts(tmp_path / "bytes")


# --- interpolation ---------------------------------------------------------------------------------------------------

A, B = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 4, 5)), jnp.float32) for i in range(2))
FRACTION = jnp.array([0.0, 0.5, 1.0])


def test_both_ways_begin_and_end_at_their_ends():
    for found in (lerp(A, B, FRACTION), slerp(A, B, FRACTION, axes=(-1,)), interpolate_noise(A, B, FRACTION)):
        np.testing.assert_allclose(found[0], A[0], atol=1e-6)
        np.testing.assert_allclose(found[2], B[2], atol=1e-6)
        assert np.abs(found[1] - A[1]).max() > 0.1


def test_the_way_along_a_sphere_keeps_the_length_and_halves_the_angle():
    a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (A, B))
    middle = slerp(a, b, jnp.full(3, 0.5), axes=(-1,))
    np.testing.assert_allclose(jnp.linalg.norm(middle, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(a * middle, -1), jnp.sum(b * middle, -1), atol=1e-5)
    assert (jnp.linalg.norm(lerp(a, b, jnp.full(3, 0.5)), axis=-1) < 0.999).any()


@pytest.mark.parametrize("other", [1.0, -1.0, 0.0])
def test_vectors_without_an_angle_go_straight(other: float):
    found = slerp(A, other * A, jnp.full(3, 0.25), axes=(-1,))
    np.testing.assert_allclose(found, (0.75 + 0.25 * other) * A, atol=1e-5)


def test_of_conditions_context_and_vector_change_and_the_rest_stays():
    labels = jnp.arange(3)
    one = Conditions(context=A, vector=A[:, 0], class_labels=labels)
    two = Conditions(context=B, vector=B[:, 0], class_labels=labels + 1)
    found = interpolate_conditions(one, two, FRACTION, "lerp")
    np.testing.assert_allclose(found.context[1], 0.5 * (A[1] + B[1]), atol=1e-6)
    np.testing.assert_allclose(found.vector[1], 0.5 * (A[1, 0] + B[1, 0]), atol=1e-6)
    np.testing.assert_array_equal(found.class_labels, labels)
    assert found.concat is None


def test_captions_of_training_know_no_brackets():
    encoder = CaptionEncoder(ONE.tokenizer)
    assert not np.array_equal(encoder("a (red) circle"), encoder("a red circle"))
