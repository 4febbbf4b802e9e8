"""The Inception score: are the pictures each of a clear class, and together of many?

(1) score = exp mean_x KL(p(y | x) || p(y)), with p(y) the mean of p(y | x); Salimans et al. 2016, arXiv:1606.03498
"""

import numpy as np
from jaxtyping import Float


def class_probabilities(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """softmax in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(1, keepdims=True)


def inception_score(logits: Float[np.ndarray, "n k"], splits: int = 10) -> float:
    """The mean of (1) over equal parts of the pictures, in their order, as it is published."""
    parts = np.array_split(class_probabilities(logits), min(splits, len(logits)))
    return float(np.mean([weighted_score(part, np.ones((len(part), 1)))[0] for part in parts]))


def weighted_score(
    probabilities: Float[np.ndarray, "n k"], weights: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, " r"]:
    """(1) of all pictures, for each column of weights."""
    shares = weights / weights.sum(0)
    marginal = shares.T @ probabilities  # [r, k]
    negative_entropy = (probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(1) @ shares
    marginal_entropy = -(marginal * np.log(np.maximum(marginal, 1e-300))).sum(1)
    return np.exp(negative_entropy + marginal_entropy)
