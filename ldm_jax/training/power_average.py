"""Averages of parameters whose window grows with training, and how one of any width is made of a few that were kept.

(1) average_t = sum_tau p(tau) params_tau with p(tau) ~ tau^gamma for tau <= t:
    average <- average + (1 - beta) (params - average),  beta = (1 - 1 / t)^(gamma + 1)
                                                        Karras et al. 2024, arXiv:2312.02696, eq. 1 and 2
(2) sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), the spread of p as a share of t: gamma is the largest
    root of gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s, s = sigma_rel^-2              the same, eq. 3
(3) <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) (m / t_a)^gamma_a (m / t_b)^gamma_b
    / ((gamma_a + gamma_b + 1) max(t_a, t_b)),  m = min(t_a, t_b): the integral of the product of two profiles
(4) the profile p_r is made of kept ones p_i with the weights x of least squares: sum_j <p_i, p_j> x_j = <p_i, p_r>
                                                        the same, section 3.2 and appendix C.2
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int

from ldm_jax.model import Params


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a profile from its relative width (2)."""
    s = float(sigma_rel) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    return float(roots.real.max())


def update_power_average(average: Params, params: Params, step: Int[Array, ""], gamma: float) -> Params:
    """Move an average towards the parameters (1); `step` counts the steps done before this one."""
    share = -jnp.expm1((gamma + 1.0) * jnp.log1p(-1.0 / (step + 1.0)))  # 1 - beta, which keeps its digits at any step
    return jax.tree.map(lambda a, p: a + share * (p - a), average, params)


def inner_products(
    ends: Float64[np.ndarray, " n"],
    gammas: Float64[np.ndarray, " n"],
    other_ends: Float64[np.ndarray, " m"],
    other_gammas: Float64[np.ndarray, " m"],
) -> Float64[np.ndarray, "n m"]:
    """The products (3) of two sets of profiles."""
    (a, b), (g, h) = np.meshgrid(ends, other_ends, indexing="ij"), np.meshgrid(gammas, other_gammas, indexing="ij")
    common = np.minimum(a, b)
    return (g + 1) * (h + 1) * (common / a) ** g * (common / b) ** h / ((g + h + 1) * np.maximum(a, b))


def profile_weights(
    ends: Float64[np.ndarray, " n"], gammas: Float64[np.ndarray, " n"], end: int, gamma: float
) -> tuple[Float64[np.ndarray, " n"], float]:
    """Weights (4) of kept averages for the one that ends at `end`.

    Args:
        ends: step at which each was kept.
        gammas: exponent of each.
        end: step of the average that is wanted.
        gamma: its exponent.

    Returns:
        The weights, and how far the profile that they make is from the one that is wanted, as a share of its norm.
    """
    wanted = np.asarray([1.0]), np.asarray([gamma])
    own = ends / end, gammas
    products, towards = inner_products(*own, *own), inner_products(*own, *wanted)[:, 0]
    weights = np.linalg.lstsq(products, towards, rcond=1e-14)[0]
    square = inner_products(*wanted, *wanted)[0, 0]
    missing = square - 2 * weights @ towards + weights @ products @ weights
    return weights, float(np.sqrt(max(missing, 0.0) / square))
