"""The Frechet distance of two normal distributions, in float64 by eigenvalues.

(1) d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2)       Dowson and Landau 1982; Heusel et al. 2017,
                                                                       arXiv:1706.08500
(2) tr (C_1 C_2)^(1/2) = sum_i sqrt(lambda_i), lambda the eigenvalues of the symmetric C_1^(1/2) C_2 C_1^(1/2)

Both matrices are symmetric and not negative, so (2) needs no square root of a general matrix, which SciPy's algorithm
does not find for singular ones: where there are fewer pictures than features.
"""

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UserError
from ldm_jax.evaluation.moments import Statistics


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """The squared distance (1), which is what is published as FID.

    Raises:
        UserError: they are of different networks, or hold numbers that are not finite.
    """
    return frechet_distance_from(first, square_root(first.covariance), second)


def frechet_distance_from(first: Statistics, root: Float[np.ndarray, "d d"], second: Statistics) -> float:
    """The same, given the square root of the first covariance, which takes half of the time.

    Raises:
        UserError: as `frechet_distance`.
    """
    if first.mean.shape != second.mean.shape:
        raise UserError(
            f"statistics of {len(first.mean)} features cannot be compared with those of {len(second.mean)}: they are "
            "of two networks; compute both with the same one"
        )
    for statistics in (first, second):
        if not (np.isfinite(statistics.mean).all() and np.isfinite(statistics.covariance).all()):
            raise UserError("statistics hold numbers that are not finite; the features they are of are damaged")
    eigenvalues = np.linalg.eigvalsh(root @ second.covariance @ root)
    overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()  # (2); what is below 0 is rounding
    apart = ((first.mean - second.mean) ** 2).sum()
    return float(apart + np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap)  # (1)


def square_root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a covariance."""
    eigenvalues, vectors = np.linalg.eigh(covariance.astype(np.float64))
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T
