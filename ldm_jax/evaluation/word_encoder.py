"""An encoder of pictures into the words of captions, learned in closed form from a data set that has both.

(1) t(caption) = its words that are in the vocabulary, each weighed by log(N / captions with it), minus the mean caption
(2) v(picture) = W x, W = argmin sum_i |W x_i - t_i|^2 + lambda |W|^2, x the standardised features of a frozen network
(3) lambda of the least leave-one-out error: residual_i / (1 - h_ii), h the diagonal of U diag(s^2 / (s^2 + lambda)) U'
    with x = U diag(s) V' (Golub, Heath and Wahba 1979, Technometrics 21)

It is trained here, in seconds, on whatever was captioned: it needs no weights, and knows only words that it has met.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UserError

MAX_WORDS = 4000
"""Words of the vocabulary: the most frequent that two captions have."""
MAX_PICTURES = 10_000
"""Pictures that it is trained on, at most: more cost more than they teach."""
_STRENGTHS = np.geomspace(1e-4, 1e2, 13)
"""Candidates for lambda, in units of the mean of s^2."""


class Regression(NamedTuple):
    """What was learned of vectors of captions, by (2) and (3)."""

    mean_text: Float[np.ndarray, " v"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    matrix: Float[np.ndarray, "d v"]
    """W' of (2)."""


class WordEncoder(NamedTuple):
    """What was learned."""

    words: dict[str, int]
    weight: Float[np.ndarray, " v"]
    """Of each word (1)."""
    mean_text: Float[np.ndarray, " v"]
    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    matrix: Float[np.ndarray, "d v"]
    """W' of (2)."""


def fit_words(features: Float[np.ndarray, "n d"], captions: Sequence[str]) -> WordEncoder:
    """Learn from pictures and their captions.

    Raises:
        UserError: no two captions share a word.
    """
    counts = Counter(word for caption in captions for word in set(words_of(caption)))
    kept = [word for word, count in counts.most_common(MAX_WORDS) if count > 1]
    if not kept:
        raise UserError(f"no two of the {len(captions)} captions share a word; there is nothing to learn from them")
    words = {word: i for i, word in enumerate(kept)}
    weight = np.log(len(captions) / np.array([counts[word] for word in kept])) + 1e-6
    bags = _bags(words, weight, captions)
    return WordEncoder(words, weight, *fit_vectors(features, bags))


def fit_vectors(features: Float[np.ndarray, "n d"], vectors: Float[np.ndarray, "n v"]) -> Regression:
    """Learn to tell the vectors of captions from their pictures."""
    mean_text, x = vectors.mean(0), features.astype(np.float64)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    return Regression(mean_text, mean, scale, _ridge((x - mean) / scale, vectors - mean_text))


def picture_vectors(encoder: WordEncoder | Regression, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n v"]:
    """The pictures among the words, or the vectors of captions (2)."""
    return ((features - encoder.mean) / encoder.scale) @ encoder.matrix


def text_vectors(encoder: WordEncoder, captions: Sequence[str]) -> Float[np.ndarray, "k v"]:
    """The captions among the words (1)."""
    return _bags(encoder.words, encoder.weight, captions) - encoder.mean_text


def words_of(caption: str) -> list[str]:
    """The words of a caption, without regard to case and marks."""
    return re.findall(r"\w+", caption.lower())


def _bags(words: dict[str, int], weight: Float[np.ndarray, " v"], captions: Sequence[str]) -> Float[np.ndarray, "k v"]:
    bags = np.zeros((len(captions), len(words)))
    for row, caption in zip(bags, captions, strict=True):
        known = [words[word] for word in set(words_of(caption)) if word in words]
        row[known] = weight[known]
    return bags


def _ridge(x: Float[np.ndarray, "n d"], target: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "d v"]:
    """The matrix of (2) with the lambda of (3)."""
    u, s, v = np.linalg.svd(x, full_matrices=False)
    projected, unit = u.T @ target, float(np.mean(s**2))
    return v.T @ ((s / (s**2 + _best_strength(u, s, projected, target) * unit))[:, None] * projected)


def _best_strength(
    u: Float[np.ndarray, "n r"], s: Float[np.ndarray, " r"], projected: Float[np.ndarray, "r v"], target: np.ndarray
) -> float:
    def error(strength: float) -> float:
        shrink = s**2 / (s**2 + strength * np.mean(s**2))
        residual = target - u @ (shrink[:, None] * projected)
        return float(np.mean((residual / (1 - np.minimum(u**2 @ shrink, 1 - 1e-9))[:, None]) ** 2))

    return float(min(_STRENGTHS, key=error))
