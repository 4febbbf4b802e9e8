"""How a network computes, as one static value handed from module to module."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.config import Remat
from ldm_jax.nn.dot_product_attention import REFERENCE, AttentionKernel

Part = Literal["attention", "block", "level"]
M = TypeVar("M", bound=nn.Module)

_RECOMPUTED: dict[Remat, tuple[Part, ...]] = {
    "none": (),
    "attention": ("attention",),
    "blocks": ("block",),
    "full": ("block", "level"),
}


@dataclass(frozen=True)
class Compute:
    """Type of products, formulation of attention, and what is computed again for the gradient."""

    dtype: DTypeLike = jnp.float32
    kernel: AttentionKernel = REFERENCE
    remat: Remat = "none"

    def part(self, module: type[M], kind: Part, static: tuple[int, ...] = ()) -> type[M]:
        """The class of a part of the network, whose inside is computed again if the policy says so.

        Parameters and their paths are the same. `static` are the positions of its call's arguments that are no arrays,
        the module itself being 0.
        """
        if kind not in _RECOMPUTED[self.remat]:
            return module
        return nn.remat(module, static_argnums=static)
