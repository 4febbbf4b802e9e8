"""How long a step should take: a roofline, which is a prediction and not a measurement.

(1) work = max(FLOPs of a chip / peak, bytes of a chip / bandwidth)    Williams et al. 2009, doi:10.1145/1498765.1498785
(2) step = calibration (max(work, asynchronous collectives) + synchronous collectives)
(3) MFU = model FLOPs / (step, chips, peak)                            Chowdhery et al. 2022, arXiv:2204.02311, B
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ldm_jax.planning.collectives import Collective, collective_seconds
from ldm_jax.planning.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a roofline says of a step."""

    compute_seconds: float
    memory_seconds: float
    exposed_seconds: float
    """Collectives during which nothing else is done."""
    hidden_seconds: float
    """Collectives beside which the step goes on."""
    step_seconds: float
    images_per_second: float
    """Of all chips together."""
    mfu: float
    chip_hours: float
    """For all steps of the stage, or for 1000 pictures of sampling."""
    cost: float | None
    """Chip-hours times their price."""

    @property
    def bound_by(self) -> str:
        """What takes longest."""
        times = {
            "arithmetic": self.compute_seconds,
            "memory bandwidth": self.memory_seconds,
            "collectives": self.exposed_seconds + self.hidden_seconds,
        }
        return max(times, key=lambda name: times[name])


def predict(
    topology: Topology,
    *,
    flops: float,
    model_flops: float,
    bytes_accessed: int | None,
    collectives: Iterable[Collective],
    batch_size: int,
    num_steps: int,
    calibration: float = 1.0,
    price: float | None = None,
) -> Prediction:
    """The roofline (1) to (3).

    Args:
        topology: the chips.
        flops: operations of a step on all chips, with what is computed again.
        model_flops: operations without that.
        bytes_accessed: of one chip; None leaves memory out.
        collectives: those of a step.
        batch_size: pictures of a step.
        num_steps: steps that are paid for.
        calibration: measured time over predicted time, from a machine where both are known.
        price: of a chip-hour, in any currency.
    """
    chip, chips = topology.chip, topology.num_chips
    compute, memory = flops / chips / chip.peak_flops, (bytes_accessed or 0) / chip.bandwidth
    seconds = {True: 0.0, False: 0.0}
    for collective in collectives:
        seconds[collective.asynchronous] += collective_seconds(collective, topology)
    step = calibration * (max(compute, memory, seconds[True]) + seconds[False])
    hours = num_steps * step * chips / 3600
    return Prediction(
        compute_seconds=compute,
        memory_seconds=memory,
        exposed_seconds=seconds[False] + max(seconds[True] - max(compute, memory), 0.0),
        hidden_seconds=min(seconds[True], max(compute, memory)),
        step_seconds=step,
        images_per_second=batch_size / step,
        mfu=model_flops / (step * chips * chip.peak_flops),
        chip_hours=hours,
        cost=None if price is None else price * hours,
    )


def assumptions(topology: Topology, *, compute_dtype: str, calibration: float, bytes_source: str) -> Iterator[str]:
    """What a prediction takes for granted, for its reader."""
    chip = topology.chip
    yield (
        f"{chip.name}: {chip.peak_flops / 1e12:.0f} TFLOP/s in bfloat16, {chip.bandwidth / 1e9:.0f} GB/s of memory, "
        "both reached in full; convolutions and matrix products count, nothing else does"
    )
    if compute_dtype == "float32":
        yield "compute_dtype=float32 is predicted at the bfloat16 peak: it will be slower"
    yield f"bytes accessed: {bytes_source}"
    if chip.platform == "tpu":
        links = "both directions" if topology.has_wrap_around else "one direction, as the slice is not closed to a ring"
        yield f"collectives are rings along one side of the torus, {chip.link_bandwidth / 1e9:.0f} GB/s a link, {links}"
    elif chip.network_bandwidth is not None:
        yield (
            f"collectives are rings: {chip.link_bandwidth / 1e9:.0f} GB/s a GPU inside a node (NVLink), "
            f"{chip.network_bandwidth / 1e9:.0f} GB/s between nodes"
        )
    yield "asynchronous collectives hide behind the work, synchronous ones do not; input and encoding never wait"
    yield (
        f"calibration {calibration:g}: "
        + ("not calibrated on hardware" if calibration == 1.0 else "measured over predicted time, as given")
    )
