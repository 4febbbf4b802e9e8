"""Convolutions with three taps in each of two axes, by fewer products: Winograd's minimal filtering F(4, 3) along rows.

Four neighbours in a row of the result are made of six of the input by six products in place of twelve, for each tap
along the columns and each pair of channels (Lavin and Gray 2015, arXiv:1509.09308, section 4.2, in one
axis):

(1) y = A^T [(G k) * (B^T x)]
(2) dL/dk = G^T [(B^T x) * (A dL/dy)]

B^T x and G k are whole maps, so (1) is six convolutions with kernels of 3 x 1 on maps of a quarter of the width. In
float32 the result differs from the plain sum by some four in a million of the largest number.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num

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

    Measured in float32 on one core: 0.55 to 0.85 of the time from 96 channels on, and as long for 128 channels of 512 x
    512 positions; with 64 channels 0.9 to 1.1 (docs/performance.md).
    """
    if kernel.shape[:-2] != (3, 3) or x.shape[2] % _RESULTS:
        return False
    return x.dtype == kernel.dtype == jnp.float32 and min(kernel.shape[-2:]) >= 96


def convolve_filtering(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """(1), with zeros around `x`; its width is a multiple of four."""
    kernels = [lax.optimization_barrier(_sum(row, [kernel[:, s : s + 1] for s in range(3)])) for row in _KERNEL]

    def convolve(rows: Float[Array, "b rows w c"], padding: tuple[int, int]) -> Float[Array, "b rows w d"]:
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
    padded = _with_border(x)
    strips = lax.map(lambda begin: convolve(_strip(padded, begin, rows + 2), (0, 0)), np.arange(0, x.shape[1], rows))
    return jnp.moveaxis(strips, 0, 1).reshape(*x.shape[:3], -1)


def filtering_gradients(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], gradient: Float[Array, "b h w d"]
) -> tuple[Float[Array, "b h w c"], Float[Array, "3 3 c d"]]:
    """Gradients of the input, by (1), and of the kernel, by (2)."""
    of_x = convolve_filtering(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    rows = _rows_at_a_time(x, kernel)
    if rows == x.shape[1]:
        sums = _products(x, gradient, border=1)
    else:
        padded = _with_border(x)

        def add(total: Float[Array, "6 3 c d"], begin: Array) -> tuple[Float[Array, "6 3 c d"], None]:
            return total + _products(_strip(padded, begin, rows + 2), _strip(gradient, begin, rows), border=0), None

        zeros = jnp.zeros((_INPUTS, 3, *kernel.shape[2:]), kernel.dtype)
        sums, _ = lax.scan(add, zeros, np.arange(0, x.shape[1], rows))
    return of_x, jnp.stack([_sum(column, list(sums)) for column in _KERNEL.T], 1)


def _products(
    x: Float[Array, "b rows w c"], gradient: Float[Array, "b positions w d"], border: int
) -> Float[Array, "6 3 c d"]:
    """(B^T x) * (A dL/dy), summed over positions, for each of the three rows of the kernel.

    The gradient has the rows of a convolution of `x` with `border` rows of zeros on both sides.
    """
    channels, features, width = x.shape[-1], gradient.shape[-1], x.shape[2] // _RESULTS
    parts = [gradient[:, :, i::_RESULTS] for i in range(_RESULTS)]
    sums = []
    for v, column in zip(_of_input(x), _OUTPUT.T, strict=True):
        columns = lax.optimization_barrier(v.reshape(-1, channels).T)
        padded = jnp.pad(_sum(column, parts), ((0, 0), (2 - border, 2 - border), (0, 0), (0, 0)))
        windows = (lax.optimization_barrier(padded[:, 2 - tap : 2 - tap + x.shape[1], :width]) for tap in range(3))
        sums.append(jnp.stack([columns @ window.reshape(-1, features) for window in windows]))
    return jnp.stack(sums)


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


def _with_border(x: Float[Array, "b h w c"]) -> Float[Array, "b more w c"]:
    return jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))


def _strip(x: Float[Array, "b h w c"], begin: Array, rows: int) -> Float[Array, "b rows w c"]:
    return lax.dynamic_slice_in_dim(x, begin, rows, axis=1)
