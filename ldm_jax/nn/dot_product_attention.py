"""The one function that computes attention, and the choice of how.

(1) attention(q, k, v) = softmax(q k^T / sqrt(d)) v    Vaswani et al. 2017, arXiv:1706.03762

Every formulation computes (1) with products in the inputs' type and a softmax in float32. Which one is a static value,
chosen once for the devices a model is made for (they need not be the devices of this machine: `ldm plan` compiles for
others), and then by shape:

    kernel      computes (1)                                                   instead, where it does not pay or fit
    reference   in one piece: all weights [b, n, q, k] are in memory           -
    cpu         in one piece, or a few heads at a time that stay in the cache  causal: reference
    blocked     a few queries at a time: memory does not grow with length      -
    flash       in a kernel of the TPU, weights never leave the chip's core    short or causal: reference;
                                                                               heads wider than 256: blocked
    cudnn       in a kernel of cuDNN, the same                                 float32, short or causal: reference;
                                                                               heads wider than 128: blocked

Blocked attention of few keys and queries is reference attention: it splits nothing that fits.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ldm_jax.config import AttentionChoice
from ldm_jax.nn.blocked_attention import blocked_attention, reference_attention
from ldm_jax.nn.cpu_attention import cpu_attention
from ldm_jax.nn.cudnn_attention import MAX_CUDNN_HEAD, cudnn_attention
from ldm_jax.nn.tpu_attention import MAX_FLASH_HEAD, flash_attention
from ldm_jax.sharding import split_over_batch_and_heads

Formulation = Literal["reference", "cpu", "blocked", "flash", "cudnn"]

SHORT = 512
"""Fewer queries than this have few weights: keeping them costs less than a kernel's own reading and writing."""

_BY_PLATFORM: dict[str, Formulation] = {"cpu": "cpu", "tpu": "flash", "gpu": "cudnn", "cuda": "cudnn"}


@dataclass(frozen=True)
class AttentionKernel:
    """How attention is computed, and the mesh over whose batch and head axes a hand-written kernel is split."""

    kind: Formulation = "reference"
    mesh: Mesh | None = None

    @classmethod
    def choose(cls, choice: AttentionChoice, mesh: Mesh | None = None) -> "AttentionKernel":
        """What a configuration asks for on the devices of `mesh`, or on this machine's first; `auto` is settled."""
        if choice != "auto":
            return cls(choice, mesh)
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        return cls(_BY_PLATFORM.get(platform, "reference"), mesh)

    def for_shapes(self, query: Float[Array, "b q n d"], *, causal: bool) -> Formulation:
        """The formulation for queries of this shape and type, by the table above."""
        if self.kind in ("reference", "blocked"):
            return self.kind
        if self.kind == "cpu":
            return "reference" if causal else "cpu"
        wide = query.dtype == jnp.float32
        if causal or query.shape[1] < SHORT or (self.kind == "cudnn" and wide):
            return "reference"
        widest = MAX_FLASH_HEAD if self.kind == "flash" else MAX_CUDNN_HEAD
        return "blocked" if query.shape[-1] > widest else self.kind


REFERENCE = AttentionKernel()


def dot_product_attention(
    query: Float[Array, "b q n d"],
    key: Float[Array, "b k n d"],
    value: Float[Array, "b k n d"],
    *,
    causal: bool = False,
    kernel: AttentionKernel = REFERENCE,
) -> Float[Array, "b q n d"]:
    """Multi-head attention (1); `causal` hides what comes later, `kernel` says how it is computed."""
    match kernel.for_shapes(query, causal=causal):
        case "reference":
            return reference_attention(query, key, value, causal=causal)
        case "cpu":
            return split_over_batch_and_heads(cpu_attention, kernel.mesh, query, key, value)
        case "blocked":
            return blocked_attention(query, key, value, causal=causal)
        case "flash":
            return split_over_batch_and_heads(flash_attention, kernel.mesh, query, key, value)
        case "cudnn":
            return split_over_batch_and_heads(cudnn_attention, kernel.mesh, query, key, value)
