"""Resizing as each protocol does it, to the letter: half of the quarrels over published scores are about this.

Every kind is a pair of matrices, one for each axis, whose rows hold the weights of the source pixels:

(1) y = A_h x A_w^T, with A[i, j] = k((j - c_i) / s) / sum_j k(...), c_i the place of output i among the inputs
(2) c_i = (i + 1/2) n / m - 1/2; TensorFlow 1: c_i = i n / m
(3) s = max(1, n / m) with antialiasing (Pillow), else 1; beyond the edge the outermost pixel is repeated without it,
    and left out with it
(4) linear: k(t) = max(0, 1 - |t|); cubic (Keys 1981): a = -1/2 in Pillow, -3/4 in PyTorch
"""

import functools
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Resize: TypeAlias = Literal["bilinear", "tf1-bilinear", "pil-bicubic", "torch-bicubic"]


def resize(image: Float[Array, "b h w c"], size: int, kind: Resize) -> Float[Array, "b _ _ c"]:
    """Pictures with `size` x `size` pixels (1), in their own units, without rounding."""
    rows = jnp.asarray(resize_matrix(image.shape[1], size, kind), jnp.float32)
    columns = jnp.asarray(resize_matrix(image.shape[2], size, kind), jnp.float32)
    return jnp.einsum("ih,bhwc,jw->bijc", rows, image, columns, precision=lax.Precision.HIGHEST)


@functools.cache
def resize_matrix(size_in: int, size_out: int, kind: Resize) -> Float[np.ndarray, "o i"]:
    """The weights of one axis."""
    scale = size_in / size_out
    out = np.arange(size_out)
    centre = out * scale if kind == "tf1-bilinear" else (out + 0.5) * scale - 0.5  # (2)
    spread = max(1.0, scale) if kind == "pil-bicubic" else 1.0  # (3)
    reach = int(np.ceil(2 * spread)) + 1
    taps = np.floor(centre)[:, None].astype(int) + np.arange(-reach, reach + 1)
    weights = _kernel((taps - centre[:, None]) / spread, kind)
    matrix = np.zeros((size_out, size_in))
    inside = (taps >= 0) & (taps < size_in)
    if kind == "pil-bicubic":
        weights = weights * inside
    np.add.at(matrix, (np.broadcast_to(out[:, None], taps.shape), taps.clip(0, size_in - 1)), weights)
    return matrix / matrix.sum(1, keepdims=True)


def _kernel(t: Float[np.ndarray, "o k"], kind: Resize) -> Float[np.ndarray, "o k"]:
    """k of (4)."""
    t = np.abs(t)
    if kind in ("bilinear", "tf1-bilinear"):
        return np.maximum(0, 1 - t)
    a = -0.5 if kind == "pil-bicubic" else -0.75
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
