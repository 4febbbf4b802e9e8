"""PSNR and SSIM: what scikit-image 0.26.0 gives for the same pictures, and their properties."""

import numpy as np
import pytest

from ldm_jax.errors import UserError
from ldm_jax.evaluation.image_quality import psnr, ssim

RNG = np.random.default_rng(0)
FIRST = RNG.integers(0, 256, (3, 16, 20, 3)).astype(np.uint8)
NOISE = RNG.normal(size=FIRST.shape) * np.array([5, 30, 90])[:, None, None, None]
SECOND = np.clip(FIRST.astype(float) + NOISE, 0, 255).astype(np.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image():
    # structural_similarity(x, y, data_range=255, channel_axis=-1), peak_signal_noise_ratio(x, y, data_range=255)
    np.testing.assert_allclose(
        ssim(FIRST, SECOND), [0.9975598918335357, 0.9278037237506475, 0.6317917123103], atol=1e-9
    )
    expected = [34.03605149762399, 19.03192408634686, 11.011649230589457]
    np.testing.assert_allclose(psnr(FIRST, SECOND), expected, rtol=1e-12)


def test_equal_pictures_are_at_the_top_of_both():
    np.testing.assert_allclose(ssim(FIRST, FIRST), 1)
    assert np.isinf(psnr(FIRST, FIRST)).all()


def test_the_order_of_a_pair_means_nothing():
    np.testing.assert_allclose(ssim(FIRST, SECOND), ssim(SECOND, FIRST))
    np.testing.assert_array_equal(psnr(FIRST, SECOND), psnr(SECOND, FIRST))


def test_pictures_smaller_than_a_window_are_refused():
    with pytest.raises(UserError, match="SSIM looks at windows of 7x7 pixels, and the pictures have 6x20; use larger"):
        ssim(FIRST[:, :6], SECOND[:, :6])


@pytest.mark.slow
def test_of_pictures_of_any_shape_they_are_those_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    for seed, shape in enumerate([(7, 9, 3), (32, 32, 3), (40, 17, 1)]):
        numbers = np.random.default_rng(seed)
        first, second = (numbers.integers(0, 256, (2, *shape)).astype(np.uint8) for _ in range(2))
        options = {"data_range": 255, "channel_axis": -1}
        expected = [metrics.structural_similarity(a, b, **options) for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(ssim(first, second), expected, atol=1e-6)
        expected = [metrics.peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(psnr(first, second), expected, rtol=1e-9)
