"""How devices are arranged."""

from dataclasses import dataclass
from typing import Literal

from ldm_jax.config.checks import require, require_number


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the device mesh axes; their product is the number of devices, and one of them may be -1: the rest."""

    data: int = -1
    """Devices that hold different samples and the same parameters."""
    fsdp: int = 1
    """Devices that hold different samples and a share of each large parameter."""
    tensor: int = 1
    """Devices that share the work inside a layer."""
    across_slices: Literal["data", "fsdp"] = "data"
    """Axis that crosses slices, where the devices lie in several (TPU multislice, GPU hosts): the others stay inside
    one, where the network is fast."""

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require_number(f"MeshConfig.{name}", size)
            require(size > 0 or size == -1, f"MeshConfig.{name}={size} must be positive, or -1 for the rest")
        require(
            list(sizes.values()).count(-1) <= 1,
            f"MeshConfig has more than one -1: {sizes}; at most one axis can take the rest of the devices",
        )
