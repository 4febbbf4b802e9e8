"""Image-to-image: sampling starts from a picture with noise, and not from noise alone.

(1) z_t = alpha_t z_0 + sigma_t epsilon, at the level at which the last int(strength n) of n steps begin
                                                        Meng et al. 2022 (SDEdit), arXiv:2108.01073, algorithm 1
"""

import math

from jaxtyping import Array, Float

from ldm_jax.diffusion.samplers import Start
from ldm_jax.errors import UserError


def noised(
    start: Start, z0: Float[Array, "b *latent z"], epsilon: Float[Array, "b *latent z"]
) -> Float[Array, "b *latent z"]:
    """The latent at the level of a start (1)."""
    return start.alpha * z0 + start.sigma * epsilon


def num_skipped(strength: float, num_steps: int) -> int:
    """Steps of n that are left out, as CompVis and diffusers count them.

    Raises:
        UserError: none would be left.
    """
    made = min(int(num_steps * strength), num_steps)
    if made < 1:
        least = math.ceil(1e4 / num_steps) / 1e4
        raise UserError(
            f"--strength={strength} of {num_steps} steps makes none of them; use at least {least:g}, or more steps: "
            "--num-sample-steps"
        )
    return num_steps - made
