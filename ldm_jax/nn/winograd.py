"""Convolutions with three taps in each of two axes, by fewer products: Winograd's minimal filtering F(4, 3) along rows.

Four neighbours in a row of the result are made of six of the input by six products in place of twelve, for each tap
along the columns and each pair of channels (Lavin and Gray 2015, arXiv:1509.09308, section 4.2,
in one axis):

(1) y = A^T [(G k) * (B^T x)]

B^T x and G k are whole maps, so (1) is six convolutions with kernels of 3 x 1 on maps of a quarter of the width. In
float32 the result differs from the plain sum by some four in a million of the largest number.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
"""B^T, G and A^T of (1)."""

_RESULTS, _INPUTS = _OUTPUT.shape
_ROOM = 32 * 2**20
"""Bytes of B^T x and its products that a strip of rows may take: larger maps would be read from memory six times."""


def has_quick_filtering(x: Float[Array, "b *spatial c"], kernel: Float[Array, "..."]) -> bool:
    """Whether a CPU computes a convolution with stride 1 sooner by (1).

    Measured in float32 on one core: 0.55 to 0.85 of the time from 192 channels on (docs/performance.md). For few
    positions it would take longer to make G k.
    """
    if kernel.shape[:-2] != (3, 3) or x.shape[2] % _RESULTS or x.size < 1024 * x.shape[-1]:
        return False
    return x.dtype == kernel.dtype == jnp.float32 and min(kernel.shape[-2:]) >= 192


def convolve_filtering(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """(1), with zeros around `x`; its width is a multiple of four."""
    kernels = [lax.optimization_barrier(_sum(row, [kernel[:, s : s + 1] for s in range(3)])) for row in _KERNEL]

    def convolve(rows: Float[Array, "b rows w c"], padding: tuple[int, int]) -> Float[Array, "b kept w d"]:
        products = [
            lax.optimization_barrier(
                lax.conv_general_dilated(v, k, (1, 1), (padding, (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
            for v, k in zip(_of_input(rows), kernels, strict=True)
        ]
        results = jnp.stack([_sum(row, products) for row in _OUTPUT], 3)
        return results.reshape(*results.shape[:2], rows.shape[2], -1)

    rows = _rows_at_a_time(x, kernel)
    if rows == x.shape[1]:
        return convolve(x, (1, 1))
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))

    def strip(begin: Int[Array, ""]) -> Float[Array, "b kept w d"]:
        return convolve(lax.dynamic_slice_in_dim(padded, begin, rows + 2, axis=1), (0, 0))

    strips = lax.map(strip, jnp.arange(0, x.shape[1], rows))
    return jnp.moveaxis(strips, 0, 1).reshape(*x.shape[:3], -1)


def _of_input(x: Float[Array, "b rows w c"]) -> list[Float[Array, "b rows quarter c"]]:
    """B^T x: maps of a quarter of the width."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    last = x.shape[2] - _RESULTS + 1
    windows = [padded[:, :, i : i + last : _RESULTS] for i in range(_INPUTS)]
    return [lax.optimization_barrier(_sum(row, windows)) for row in _INPUT]


def _sum(factors: Num[np.ndarray, " n"], parts: list[Float[Array, "..."]]) -> Float[Array, "..."]:
    terms = [
        part if factor == 1 else float(factor) * part for factor, part in zip(factors, parts, strict=True) if factor
    ]
    return sum(terms[1:], terms[0])


def _rows_at_a_time(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> int:
    """The most rows whose transforms have room, of those that divide the height."""
    batch, height, width, _ = x.shape
    one = _INPUTS * batch * (width // _RESULTS) * sum(kernel.shape[-2:]) * x.dtype.itemsize
    return max(rows for rows in range(1, height + 1) if height % rows == 0 and (rows == 1 or rows * one <= _ROOM))
