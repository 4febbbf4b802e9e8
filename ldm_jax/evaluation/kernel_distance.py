"""The kernel distance (KID): an unbiased estimate of how far two sets of features are apart, from any number of them.

(1) k(x, y) = (x . y / d + 1)^3
(2) mmd^2 = sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (n (n - 1)) - 2 mean_ij k(x_i, y_j)
    Binkowski et al. 2018, arXiv:1801.01401
(3) With weights, such as how often a bootstrap drew each: sum_{i != j} w_i w_j k / sum_{i != j} w_i w_j. A picture is
    never paired with its own copy, so that the bootstrap is unbiased too.
"""

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UserError

_ROWS = 1024


def kernel(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m n"]:
    """k of (1)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]) -> float:
    """mmd^2 over all pairs (2); it is around 0, and may be below it, where both are of one distribution.

    Raises:
        UserError: there are fewer than two of one of them.
    """
    return float(weighted_kernel_distance(x, y, np.ones((len(x), 1)), np.ones((len(y), 1)))[0])


def weighted_kernel_distance(
    x: Float[np.ndarray, "m d"],
    y: Float[np.ndarray, "n d"],
    x_weights: Float[np.ndarray, "m r"],
    y_weights: Float[np.ndarray, "n r"],
) -> Float[np.ndarray, " r"]:
    """mmd^2 for each column of weights (3), in one pass over the kernel matrices, of which few rows are kept.

    Raises:
        UserError: there are fewer than two of one of them.
    """
    if min(len(x), len(y)) < 2:
        raise UserError(f"a kernel distance of {len(x)} to {len(y)} pictures does not exist; give at least two of each")
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = _within(x, x_weights) + _within(y, y_weights)
    between = _products(x, y, x_weights, y_weights) / (x_weights.sum(0) * y_weights.sum(0))
    return within - 2 * between


def kernel_distance_subsets(
    x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"], *, subsets: int, size: int, seed: int = 0
) -> Float[np.ndarray, " s"]:
    """mmd^2 of random subsets, whose mean is what is published as KID for large sets.

    Raises:
        UserError: a subset is larger than one of the sets.
    """
    if size > min(len(x), len(y)):
        raise UserError(f"subsets of {size} are larger than a set of {min(len(x), len(y))} pictures; use smaller ones")
    rng = np.random.default_rng(seed)
    pairs = [(rng.choice(len(x), size, False), rng.choice(len(y), size, False)) for _ in range(subsets)]
    return np.array([kernel_distance(x[i], y[j]) for i, j in pairs])


def _within(x: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "n r"]) -> Float[np.ndarray, " r"]:
    own = ((x**2).sum(1) / x.shape[1] + 1) ** 3
    pairs = _products(x, x, weights, weights) - own @ weights**2
    return pairs / (weights.sum(0) ** 2 - (weights**2).sum(0))


def _products(
    x: Float[np.ndarray, "m d"],
    y: Float[np.ndarray, "n d"],
    x_weights: Float[np.ndarray, "m r"],
    y_weights: Float[np.ndarray, "n r"],
) -> Float[np.ndarray, " r"]:
    """sum_ij v_i w_j k(x_i, y_j) for each column of weights."""
    total = np.zeros(x_weights.shape[1])
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        total += (x_weights[rows] * (kernel(x[rows], y) @ y_weights)).sum(0)
    return total
