"""Frechet and kernel distances against torch-fidelity on the same features.

It needs torchvision, so it is in no extra: pip install torch-fidelity torchvision, beside the parity extra.
"""

import numpy as np
import pytest

from ldm_jax.evaluation.frechet import frechet_distance
from ldm_jax.evaluation.kernel_distance import kernel_distance
from ldm_jax.evaluation.moments import statistics_of

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(64, 64)) / 8
X = np.maximum(RNG.normal(size=(600, 64)) @ MIX, 0).astype(np.float32)
Y = np.maximum(RNG.normal(size=(500, 64)) @ MIX + 0.1, 0).astype(np.float32)


def test_the_frechet_distance_is_torch_fidelitys():
    torch, fidelity = pytest.importorskip("torch"), pytest.importorskip("torch_fidelity.metric_fid")
    theirs = [fidelity.fid_features_to_statistics(torch.tensor(features)) for features in (X, Y)]
    expected = fidelity.fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(statistics_of(X), statistics_of(Y)) == pytest.approx(expected, rel=1e-4)


def test_the_kernel_distance_is_torch_fidelitys():
    """Of one subset that is the whole: its subsets are drawn from another generator."""
    torch, fidelity = pytest.importorskip("torch"), pytest.importorskip("torch_fidelity.metric_kid")
    features = [torch.tensor(x[:500].astype(np.float64)) for x in (X, Y)]
    options = {"kid_subsets": 1, "kid_subset_size": 500, "verbose": False}
    expected = fidelity.kid_features_to_metric(*features, **options)["kernel_inception_distance_mean"]
    assert kernel_distance(X[:500], Y) == pytest.approx(expected, rel=1e-4)
