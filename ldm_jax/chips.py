"""The accelerators that this project knows: peak speed, memory, and links, as their makers publish them.

TPU: system architecture pages of Google Cloud (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e); interconnect of a chip
divided by its links, one direction. GPU: data sheets of NVIDIA A100, H100 (SXM5 and PCIe) and H200; dense bfloat16
without sparsity; NVLink in one direction; between nodes one InfiniBand port a GPU, HDR (DGX A100) or NDR (DGX H100).
"""

from dataclasses import dataclass

_GIB = 2**30
_GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator; rates are peaks that no program reaches."""

    name: str
    """Short name, as in a topology: `v5p`, `h100`."""
    kinds: tuple[str, ...]
    """Its `device_kind` as jax reports it."""
    platform: str
    """`tpu` or `gpu`."""
    peak_flops: float
    """Operations a second in bfloat16 with float32 sums."""
    bandwidth: float
    """Bytes a second of its memory."""
    memory: int
    """Bytes of its memory."""
    link_bandwidth: float
    """Bytes a second and direction of one link: of one of the torus (TPU), of all of NVLink (GPU)."""
    num_links: int
    """Links of the torus that it has; 1 for a GPU."""
    network_bandwidth: float | None = None
    """Bytes a second and direction of its network port to other nodes; None for a TPU, whose slice is one torus."""
    group_size: int | None = None
    """GPUs of a node, which are joined by NVLink."""


def _tpu(name: str, kinds: tuple[str, ...], tflops: int, gbytes: int, memory: int, gbits: int, links: int) -> Chip:
    """A row of the table; `gbits` is the published interconnect bandwidth of a chip, all links together."""
    return Chip(
        name=name,
        kinds=kinds,
        platform="tpu",
        peak_flops=tflops * 1e12,
        bandwidth=gbytes * 1e9,
        memory=memory * _GIB,
        link_bandwidth=gbits / 8 * 1e9 / links,
        num_links=links,
    )


def _gpu(name: str, kinds: tuple[str, ...], tflops: int, gbytes: int, memory: int, nvlink: int, port: int) -> Chip:
    """A row of the table; `nvlink` and `port` are gigabytes a second in one direction."""
    return Chip(
        name=name,
        kinds=kinds,
        platform="gpu",
        peak_flops=tflops * 1e12,
        bandwidth=gbytes * 1e9,
        memory=memory * _GB,
        link_bandwidth=nvlink * 1e9,
        num_links=1,
        network_bandwidth=port * 1e9,
        group_size=8,
    )


CHIPS = (
    _tpu("v4", ("TPU v4",), 275, 1228, 32, 2400, 6),
    _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197, 819, 16, 1600, 4),
    _tpu("v5p", ("TPU v5", "TPU v5p"), 459, 2765, 95, 4800, 6),
    _tpu("v6e", ("TPU v6 lite", "TPU v6e"), 918, 1640, 32, 3200, 4),
    _gpu("a100", ("NVIDIA A100-SXM4-80GB",), 312, 2039, 80, 300, 25),
    _gpu("h100", ("NVIDIA H100 80GB HBM3",), 989, 3350, 80, 450, 50),
    _gpu("h200", ("NVIDIA H200",), 989, 4800, 141, 450, 50),
    _gpu("a100-40gb", ("NVIDIA A100-SXM4-40GB",), 312, 1555, 40, 300, 25),
    _gpu("a100-pcie", ("NVIDIA A100 80GB PCIe",), 312, 1935, 80, 32, 25),
    _gpu("h100-pcie", ("NVIDIA H100 PCIe",), 756, 2000, 80, 64, 50),
)


def chip_of(device_kind: str) -> Chip | None:
    """The accelerator that jax calls `device_kind`; None for one that is not known, and for a CPU."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
