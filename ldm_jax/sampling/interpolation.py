"""Between two arrays: straight (lerp) or along a sphere (slerp), for noises and for conditions.

(1) lerp(a, b, f) = (1 - f) a + f b
(2) slerp(a, b, f) = sin((1 - f) w) / sin(w) a + sin(f w) / sin(w) b,  w the angle between a and b
                                                                        Shoemake 1985, SIGGRAPH 19(3), section 3.3

Slerp keeps the length of vectors of one length: what lies between two draws of standard normal noise is as long as
they are, which a straight line would make shorter. Where the angle is too small for (2), and where two vectors point
away from each other so that no plane is given, it is (1).
"""

from typing import Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.conditioning.conditions import Conditions

Kind: TypeAlias = Literal["slerp", "lerp"]

_SMALLEST_SINE = 1e-4


def lerp(a: Float[Array, "b ..."], b: Float[Array, "b ..."], fraction: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """The straight way from `a` to `b` (1), with a fraction for each sample."""
    f = fraction.reshape(-1, *(1 for _ in a.shape[1:]))
    return (1.0 - f) * a + f * b


def slerp(
    a: Float[Array, "b ..."], b: Float[Array, "b ..."], fraction: Float[Array, " b"], *, axes: tuple[int, ...]
) -> Float[Array, "b ..."]:
    """The way along a sphere (2), with a fraction for each sample; `axes` span a vector."""
    f = fraction.reshape(-1, *(1 for _ in a.shape[1:]))
    lengths = [jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True)) for x in (a, b)]
    norm = lengths[0] * lengths[1]
    cosine = jnp.sum(a * b, axis=axes, keepdims=True) / jnp.where(norm > 0, norm, 1.0)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    is_plane = (sine > _SMALLEST_SINE) & (norm > 0)
    safe = jnp.where(is_plane, sine, 1.0)
    around = jnp.sin((1.0 - f) * angle) / safe * a + jnp.sin(f * angle) / safe * b
    between = jnp.where(is_plane, around, lerp(a, b, fraction))
    return jnp.where(f == 0.0, a, jnp.where(f == 1.0, b, between))  # the ends themselves, to the bit


def interpolate_noise(
    a: Float[Array, "b *spatial c"], b: Float[Array, "b *spatial c"], fraction: Float[Array, " b"]
) -> Float[Array, "b *spatial c"]:
    """Between two noises along the sphere on which they lie: each is one vector."""
    return slerp(a, b, fraction, axes=tuple(range(1, a.ndim)))


def interpolate_conditions(a: Conditions, b: Conditions, fraction: Float[Array, " b"], kind: Kind) -> Conditions:
    """Between two conditions: each token of the context is a vector, and so is `vector`; the rest is that of `a`.

    In float32, and the condition itself at either end of the way, to rounding.
    """

    def between(x: Float[Array, "b ..."], y: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        return lerp(x, y, fraction) if kind == "lerp" else slerp(x, y, fraction, axes=(-1,))

    both = {name: (getattr(a, name), getattr(b, name)) for name in ("context", "vector")}
    return a._replace(**{name: between(*pair) for name, pair in both.items() if pair[0] is not None})
