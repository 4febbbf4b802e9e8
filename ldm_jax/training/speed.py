"""How fast training is, as figures for a line of metrics.

(1) MFU = floating-point operations of a step / (seconds of a step * devices * peak of a device in bfloat16)

The operations are those of convolutions and matrix products in the step as it is traced. Where the peak of a device is
not known, as for a CPU, there is no MFU.
"""

from dataclasses import dataclass

from ldm_jax.chips import chip_of


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What turns steps and seconds into figures."""

    batch_size: int
    """Pictures in a step, over all devices."""
    num_devices: int
    flops: float
    """Floating-point operations of a step, over all devices."""
    peak_flops: float | None
    """Of one device a second; None is not known."""

    @classmethod
    def on(cls, device_kind: str, num_devices: int, *, batch_size: int, flops: float) -> "Speed":
        """On devices that are all of the kind that jax calls `device_kind`."""
        chip = chip_of(device_kind)
        peak = None if chip is None else chip.peak_flops
        return cls(batch_size=batch_size, num_devices=num_devices, flops=flops, peak_flops=peak)

    def figures(self, *, steps: int, seconds: float, waited: float) -> dict[str, float]:
        """The figures of `steps` that took `seconds`, of which the loop `waited` for input."""
        rate = steps * self.batch_size / seconds
        figures = {
            "seconds_per_step": seconds / steps,
            "images_per_second": rate,
            "images_per_second_per_device": rate / self.num_devices,
            "input_wait": waited / seconds,
        }
        if self.peak_flops is not None:
            figures["mfu"] = self.flops * steps / (seconds * self.num_devices * self.peak_flops)  # (1)
        return figures
