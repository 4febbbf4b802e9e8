"""How networks compute what they compute: closed sets of choices that change time and memory, and results by rounding.

(1) "Rematerialised" values are computed a second time for the gradient instead of being kept
    (Chen et al. 2016, arXiv:1604.06174).
"""

from typing import Literal, TypeAlias

AttentionChoice: TypeAlias = Literal["auto", "reference", "cpu", "blocked", "flash", "cudnn"]
"""Formulation of attention; `auto` takes that of the devices: flash on TPU, cudnn on GPU, cpu on CPUs."""

Remat: TypeAlias = Literal["none", "attention", "blocks", "full"]
"""What is computed again (1): nothing, attention layers, residual blocks with their attention, or these within whole
levels, of which only the inputs are kept."""
