"""Figures of speed from steps and seconds; a utilisation where the peak of the device is known, and nowhere else."""

import jax
import pytest

from ldm_jax.training.speed import Speed


def test_figures_of_four_known_devices():
    speed = Speed.on("TPU v5p", 4, batch_size=32, flops=459e12)
    figures = speed.figures(steps=10, seconds=5.0, waited=0.5)
    assert figures == pytest.approx(
        {
            "seconds_per_step": 0.5,
            "images_per_second": 64.0,
            "images_per_second_per_device": 16.0,
            "input_wait": 0.1,
            "mfu": 0.5,  # one second of one device's peak, in half a second on four
        }
    )


@pytest.mark.parametrize("kind", ["a chip of tomorrow", jax.devices()[0].device_kind])
def test_there_is_no_utilisation_where_no_peak_is_known(kind: str):
    assert "mfu" not in Speed.on(kind, 2, batch_size=1, flops=1e9).figures(steps=1, seconds=1.0, waited=0.0)
