"""Who judges whether a picture belongs to a caption: CLIP from a folder, or what is trained on the data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ldm_jax.conditioning.clip_text import ClipTextTransformer
from ldm_jax.conditioning.tokenizer import CaptionEncoder
from ldm_jax.data.preparation import digest
from ldm_jax.data.source import Source, training_texts
from ldm_jax.errors import UserError
from ldm_jax.evaluation.network import FeatureNetwork, load_network
from ldm_jax.evaluation.sentence_encoder import find_minilm, read_sentence_encoder
from ldm_jax.evaluation.word_encoder import MAX_PICTURES, fit_vectors, fit_words, picture_vectors, text_vectors
from ldm_jax.files.json_files import read_json
from ldm_jax.files.weight_files import find_weights, open_tensors
from ldm_jax.interop.transformers.text import read_clip_text, read_clip_text_config
from ldm_jax.interop.transformers.tokenizer_files import read_tokenizer, with_marks
from ldm_jax.model import Params, hash_params
from ldm_jax.nn.apply import apply

Vectors = Float[np.ndarray, "n d"]

_TEXTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Pictures and captions in one space, where those that belong together have a small angle."""

    label: str
    """What scores are named after."""
    protocol: str
    fingerprint: str
    """SHA-256 (hex) of all that it judges by."""
    network: FeatureNetwork
    """Sees the pictures first."""
    pictures: Callable[[Vectors], Vectors]
    """From the network's pooled features to the space."""
    captions: Callable[[Sequence[str]], Vectors]

    def similarity(self, pooled: Vectors, captions: Sequence[str]) -> Float[np.ndarray, "n k"]:
        """Cosine of each picture with each caption."""
        return _normalised(self.pictures(pooled)) @ _normalised(self.captions(captions)).T


def clip_judge(folder: Path) -> Judge:
    """CLIP, both halves and the tokenizer from one folder of transformers.

    Raises:
        UserError: something is missing, damaged, or does not fit together.
    """
    network, file = load_network("clip", folder), folder / "config.json"
    config = read_clip_text_config(read_json(file), str(file))
    encode = CaptionEncoder(tokenizer := read_tokenizer(folder, config.context_length), warn=True)
    config = with_marks(config, tokenizer)
    with open_tensors(find_weights(folder, "model")) as tensors:
        params = read_clip_text(tensors, config, str(folder))
    if config.projection_dim is None:
        raise UserError(f"{folder} has no projection of captions and pictures into one space; name a whole CLIPModel")
    transformer = ClipTextTransformer(config)

    @jax.jit
    def embed(params: Params, tokens: Int[Array, "b l"]) -> Float[Array, "b p"]:
        with jax.default_matmul_precision("float32"):
            return apply(transformer, params, tokens, method="encode").pooled

    def captions(texts: Sequence[str]) -> Vectors:
        tokens = np.stack([encode(text) for text in texts])
        full = np.concatenate([tokens, np.repeat(tokens[-1:], -len(tokens) % _TEXTS_AT_ONCE, axis=0)])
        parts = [embed(params, jnp.asarray(full[i : i + _TEXTS_AT_ONCE])) for i in range(0, len(full), _TEXTS_AT_ONCE)]
        return np.concatenate([np.asarray(part) for part in parts])[: len(tokens)]

    return Judge(
        label=network.label,
        protocol=f"{network.protocol}; captions cut at {config.context_length} tokens",
        fingerprint=digest([network.fingerprint, hash_params(params), tokenizer.to_str()]),
        network=network,
        pictures=lambda pooled: pooled,
        captions=captions,
    )


def word_judge(network: FeatureNetwork, features: Vectors, source: Source) -> Judge:
    """The encoder of `word_encoder`, trained on the features of the first pictures of a captioned source.

    Raises:
        UserError: no two captions share a word.
    """
    texts = training_texts(source)[: len(features)]
    encoder = fit_words(features, texts)
    return Judge(
        label=f"words_{network.label}",
        protocol=f"{network.protocol}; ridge regression to {len(encoder.words)} words of the captions and tags of "
        f"{len(features)} pictures of {source.info.name}/{source.info.split}",
        fingerprint=digest([network.fingerprint, hash_params(encoder._asdict() | {"words": np.array(texts)})]),
        network=network,
        pictures=lambda pooled: picture_vectors(encoder, pooled),
        captions=lambda captions: text_vectors(encoder, captions),
    )


def sentence_judge(network: FeatureNetwork, features: Vectors, source: Source, folder: Path | None = None) -> Judge:
    """A frozen encoder of sentences, and a regression to its vectors on the features of a captioned source.

    Args:
        network: sees the pictures.
        features: what it sees in the first pictures of `source`.
        source: the captions, and tags, of these pictures.
        folder: the encoder; None takes all-MiniLM-L6-v2 of the package.

    Raises:
        UserError: there are no weights, or they are damaged.
    """
    texts = training_texts(source)[: len(features)]
    encode = read_sentence_encoder(find_minilm() if folder is None else folder)
    encoder = fit_vectors(features, encode(texts).astype(np.float64))
    return Judge(
        label=f"minilm_{network.label}",
        protocol=f"{network.protocol}; ridge regression to the vectors of all-MiniLM-L6-v2 of the captions and tags of "
        f"{len(features)} pictures of {source.info.name}/{source.info.split}",
        fingerprint=digest([network.fingerprint, encode.fingerprint, hash_params(encoder._asdict())]),
        network=network,
        pictures=lambda pooled: picture_vectors(encoder, pooled),
        captions=lambda captions: encode(captions) - encoder.mean_text,
    )


def training_count(source: Source) -> int:
    """Pictures of a source that `word_judge` and `sentence_judge` are trained on.

    Raises:
        UserError: it has no captions.
    """
    if not source.info.has_captions:
        raise UserError(f"the data set {source.info.name} has no captions to learn words from; use --text clip")
    return min(len(source), MAX_PICTURES)


def _normalised(vectors: Vectors) -> Vectors:
    wide = np.asarray(vectors, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
