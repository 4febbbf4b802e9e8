"""The table of accelerators: found by the name that jax gives them, and free of slips."""

import pytest

from ldm_jax.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H100 80GB HBM3", "h100")],
)
def test_a_chip_is_found_by_what_jax_calls_it(kind: str, name: str):
    chip = chip_of(kind)
    assert chip is not None and chip.name == name


def test_what_is_not_known_is_none():
    assert chip_of("cpu") is None


def test_names_and_kinds_are_unique():
    names, kinds = [chip.name for chip in CHIPS], [kind for chip in CHIPS for kind in chip.kinds]
    assert len(set(names)) == len(names)
    assert len(set(kinds)) == len(kinds)


def test_memory_is_slower_than_arithmetic_and_links_than_memory():
    for chip in CHIPS:
        assert chip.link_bandwidth * chip.num_links < chip.bandwidth < chip.peak_flops / 100, chip.name


def test_published_interconnect_of_v5p():
    chip = chip_of("TPU v5p")
    assert chip is not None
    assert chip.link_bandwidth == 100e9 and chip.num_links == 6  # 4800 Gbit/s a chip
