"""A codebook that follows its latents by moving averages instead of gradients, and gives dead codes new work.

share_j, sum_j: of the batch's latent vectors, the share whose nearest code is j, and their sum divided by their number

(1) n_j <- d n_j + (1 - d) share_j,  m_j <- d m_j + (1 - d) sum_j,  e_j = m_j / n_j
                                                     van den Oord et al. 2017, arXiv:1711.00937, appendix A.1
(2) a code with n_j < restart_usage / K is dead; it moves beside one of the codes used most, whose share is divided
    among all that come to it: the splitting of Linde, Buzo and Gray 1980 (doi:10.1109/TCOM.1980.1094577)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

_SMALLEST = 1e-10
_SPLIT = 1e-2  # distance of a restarted code from its neighbour, as a share of the neighbour's size


class CodeAverages(NamedTuple):
    """Moving averages of the codes' use (1)."""

    share: Float[Array, " k"]
    total: Float[Array, "k z"]

    @classmethod
    def of_codes(cls, codes: Float[Array, "k z"]) -> "CodeAverages":
        """The averages before the first step: every code used alike."""
        share = jnp.full(codes.shape[0], 1.0 / codes.shape[0])
        return cls(share, codes * share[:, None])

    @property
    def codes(self) -> Float[Array, "k z"]:
        """The codes that they stand for (1)."""
        return self.total / jnp.maximum(self.share, _SMALLEST)[:, None]


def follow(averages: CodeAverages, share: Float[Array, " k"], total: Float[Array, "k z"], decay: float) -> CodeAverages:
    """Move the averages towards a batch (1). A code that a batch does not use keeps its place."""
    return CodeAverages(
        decay * averages.share + (1.0 - decay) * share,
        decay * averages.total + (1.0 - decay) * total,
    )


def restart(averages: CodeAverages, restart_usage: float, key: Key[Array, ""]) -> CodeAverages:
    """Move dead codes beside those used most (2); `key` draws in which direction."""
    size = averages.share.shape[0]
    dead = averages.share < restart_usage / size
    alive = jnp.maximum(size - jnp.sum(dead), 1)
    most_used = jnp.argsort(-averages.share)
    donor = most_used[(jnp.cumsum(dead) - 1) % alive]  # of each dead code, in their order
    parts = 1.0 + jnp.zeros(size).at[donor].add(dead)  # a donor and those that share with it
    codes = averages.codes
    near = codes[donor]
    noise = jax.random.normal(key, codes.shape) * jnp.sqrt(jnp.mean(jnp.square(near), axis=-1, keepdims=True))
    codes = jnp.where(dead[:, None], near + _SPLIT * noise, codes)
    share = jnp.where(dead, averages.share[donor] / parts[donor], averages.share / parts)
    return CodeAverages(share, codes * share[:, None])
