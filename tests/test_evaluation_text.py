"""Does a picture belong to its prompt: the scores, the encoder that is trained here, CLIP, and the command."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from test_evaluation_command import scores_of, tiny_network, write_run
from test_sentence_encoder import tiny_encoder
from test_session import make_session

from ldm_jax.config import Unconditional
from ldm_jax.errors import UserError
from ldm_jax.evaluation import run, text_judges
from ldm_jax.evaluation.command import EvaluateCommand, check
from ldm_jax.evaluation.scores import ScoreOptions
from ldm_jax.evaluation.text_judges import clip_judge
from ldm_jax.evaluation.text_scores import different, ranks, text_scores
from ldm_jax.evaluation.word_encoder import fit_words, picture_vectors, text_vectors, words_of
from ldm_jax.interop.model_files import open_model, save_model
from ldm_jax.sampling import command as sampling
from ldm_jax.sampling.flags import parse_sample

OPTIONS = ScoreOptions(label="x", protocol="p", bootstrap=4)
RNG = np.random.default_rng(0)


def test_every_caption_at_its_picture_is_perfect_and_another_is_not():
    similarity = np.eye(12) * 0.5 + 0.25
    own = np.arange(12)
    found = {score.name: score for score in text_scores("clip", similarity, own, OPTIONS)}
    assert list(found) == ["clip_score_x", "retrieval_at_1_x", "retrieval_at_5_x", "retrieval_at_10_x"]
    assert found["clip_score_x"].value == 75
    assert found["clip_score_x"].floor == 25, "the captions of others"
    assert found["retrieval_at_1_x"].value == 1
    assert found["retrieval_at_5_x"].floor == pytest.approx(5 / 12)
    shifted = {score.name: score.value for score in text_scores("words", similarity, (own + 1) % 12, OPTIONS)}
    assert shifted["retrieval_at_1_x"] == 0
    assert found["clip_score_x"].num_reference == 12


def test_chance_is_what_no_knowledge_gives():
    similarity = RNG.normal(size=(4000, 20))
    (first, fifth, tenth) = text_scores("words", similarity, RNG.integers(0, 20, 4000), OPTIONS)
    for score in (first, fifth, tenth):
        assert score.value == pytest.approx(score.floor, abs=0.03)
    same = text_scores("words", np.zeros((40, 20)), np.arange(40) % 20, OPTIONS)
    assert [score.value for score in same] == [0, 0, 0], "what sees no difference is not right by chance"


def test_a_negative_cosine_is_no_agreement_and_few_captions_leave_scores_out():
    found = {score.name: score.value for score in text_scores("clip", -np.eye(3), np.arange(3), OPTIONS)}
    assert found == {"clip_score_x": 0, "retrieval_at_1_x": 0}
    assert text_scores("words", np.ones((3, 1)), np.zeros(3, int), OPTIONS) == []


def test_captions_that_come_twice_are_one():
    texts, own = different(["b", "a", "b"])
    assert (texts, own.tolist()) == (["b", "a"], [0, 1, 0])
    np.testing.assert_array_equal(ranks(np.array([[0.5, 0.5], [0.1, 0.9]]), np.array([0, 1])), [2, 1])


def captioned(count: int) -> tuple[np.ndarray, list[str]]:
    """Features that tell colour and shape, with noise."""
    colours, shapes = RNG.integers(0, 4, count), RNG.integers(0, 5, count)
    x = np.concatenate([np.eye(4)[colours], np.eye(5)[shapes]], axis=1) + 0.1 * RNG.normal(size=(count, 9))
    names = ["red", "blue", "green", "black"], ["cat", "dog", "car", "sun", "tree"]
    return x, [f"A {names[0][c]}, {names[1][s]}!" for c, s in zip(colours, shapes, strict=True)]


def test_the_encoder_learns_which_words_pictures_have():
    encoder = fit_words(*captioned(300))
    assert set(encoder.words) == {"a", "red", "blue", "green", "black", "cat", "dog", "car", "sun", "tree"}
    x, captions = captioned(100)
    texts, own = different(captions)
    similarity = picture_vectors(encoder, x) @ text_vectors(encoder, texts).T
    assert (ranks(similarity, own) == 1).mean() > 0.9
    noise = picture_vectors(encoder, RNG.normal(size=x.shape)) @ text_vectors(encoder, texts).T
    assert (ranks(noise, own) == 1).mean() < 0.3
    assert words_of("Red, BLUE's") == ["red", "blue", "s"]


def test_what_cannot_be_learned_is_given_little_weight():
    _, captions = captioned(60)
    noise = RNG.normal(size=(60, 50))
    encoder = fit_words(noise, captions)
    assert np.std(picture_vectors(encoder, noise)) < 0.2 * np.std(text_vectors(encoder, captions))
    with pytest.raises(UserError, match="no two of the 2 captions share a word; there is nothing to learn from them"):
        fit_words(np.zeros((2, 3)), ["a b", "c d"])


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_device: None) -> None:
    monkeypatch.setattr(run, "load_network", tiny_network)
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(data_cache: Path, tmp_path: Path, surroundings: None) -> Path:
    save_model(make_session(data_cache), tmp_path / "run", "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_samples_and_runs_are_judged_beside_real_pictures(trained: Path):
    found = scores_of(target=str(trained), text=("words",), num_samples=8, guidance_scale=1.0)
    assert list(found) == ["retrieval_at_1_words_alexnet", "retrieval_at_1_words_alexnet_real"]
    assert (found["retrieval_at_1_words_alexnet"].num_samples, found["retrieval_at_1_words_alexnet"].floor) == (8, 0.5)
    record = json.loads((trained / "evaluation" / "text.json").read_text())
    assert "words of the captions and tags of 20 pictures of shapes" in record["judges"][0]["protocol"]
    flags = [str(trained), "--prompt", "a red circle", "--prompt", "a blue square", "--num-samples", "2"]
    files = sampling.draw(parse_sample([*flags, "--num-sample-steps", "2"]), open_model)
    drawn = scores_of(target=str(files[0].parent), text=("words",))
    assert drawn["retrieval_at_1_words_alexnet"].num_samples == 4
    assert drawn["retrieval_at_1_words_alexnet"].num_reference == 2


def test_a_frozen_encoder_of_sentences_judges_too(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.setattr(text_judges, "find_minilm", lambda: tiny_encoder(tmp_path / "encoder"))
    found = scores_of(target=str(trained), text=("minilm",), num_samples=8, guidance_scale=1.0)
    assert list(found) == ["retrieval_at_1_minilm_alexnet", "retrieval_at_1_minilm_alexnet_real"]
    record = json.loads((trained / "evaluation" / "text.json").read_text())
    assert "vectors of all-MiniLM-L6-v2 of the captions and tags of 20 pictures" in record["judges"][0]["protocol"]


def test_what_has_no_prompts_is_refused(trained: Path, data_cache: Path, tmp_path: Path):
    session = make_session(data_cache)
    experiment = dataclasses.replace(session.experiment, conditioning=Unconditional())
    cases: dict[str, dict[str, Any]] = {
        "smoke takes no prompts, to which its pictures could belong": {
            "target": str(write_run(experiment, tmp_path / "plain"))
        },
        "0 pictures in .*empty tell their prompt; name a run, or a folder of `ldm sample RUN": {
            "target": str(tmp_path / "empty")
        },
        "nothing does not exist; name a run, or a folder of pictures of `ldm sample`": {"target": "nothing"},
    }
    (tmp_path / "empty").mkdir()
    for message, flags in cases.items():
        with pytest.raises(UserError, match=message):
            scores_of(text=("words",), **flags)
    assert list(tmp_path.rglob("text.json")) == []


def test_flags_that_do_not_go_together():
    cases: dict[str, dict[str, Any]] = {
        "--metrics means nothing with --text; leave it out": {"text": ("words",), "metrics": ("fd",)},
        "--reconstruction means nothing with --text": {"text": ("words",), "reconstruction": True},
        "--text clip comes with no weights, and none are downloaded: name the folder": {"text": ("clip",)},
        "--text-weights x goes with --text clip": {"text_weights": "x"},
    }
    for message, flags in cases.items():
        with pytest.raises(UserError, match=message):
            check(EvaluateCommand(target="a", **flags))


@pytest.mark.slow
def test_clip_judges_as_in_transformers(tmp_path: Path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    words = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    ids = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 54, "max_position_embeddings": 12, **ids},
        vision_config={**sizes, "patch_size": 4, "image_size": 16},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    judge, captions = clip_judge(tmp_path), ["a cat", "the red dog", "zz"]
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.tensor(((image / 255 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    tokens = tokenizer(captions, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    expected = (out.image_embeds @ out.text_embeds.T).numpy()
    pooled = np.asarray(judge.network.extract(judge.network.params, jnp.asarray(image)).pooled)
    np.testing.assert_allclose(judge.similarity(pooled, captions), expected, atol=1e-5)
    assert 0 < len(captions) < text_judges._TEXTS_AT_ONCE, "a batch that is filled up"
