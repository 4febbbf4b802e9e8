"""Frechet and kernel distances against torch-fidelity on the same features, and its Inception on shared weights.

It needs torchvision, so it is in no extra: pip install torch-fidelity torchvision, beside the parity extra.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import apply, random_array
from test_evaluation_networks import random_of

from ldm_jax.evaluation.frechet import frechet_distance
from ldm_jax.evaluation.inception import Inception, abstract_inception, inception_slot
from ldm_jax.evaluation.kernel_distance import kernel_distance
from ldm_jax.evaluation.moments import statistics_of
from ldm_jax.interop.mapping import write_tensors

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


def test_inception_is_torch_fidelitys(tmp_path):
    torch, fidelity = pytest.importorskip("torch"), pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    params = random_of(abstract_inception("fid"))
    weights = {name: torch.tensor(x) for name, x in write_tensors(params, inception_slot)}
    torch.save(weights | {"fc.bias": torch.zeros(1008)}, tmp_path / "weights.pth")
    layers = ["2048", "logits_unbiased"]
    theirs = fidelity.FeatureExtractorInceptionV3("inception", layers, str(tmp_path / "weights.pth"))
    pictures = np.clip(128 + 60 * random_array(2, 299, 299, 3), 0, 255).astype(np.uint8)
    with torch.no_grad():
        pooled, logits = theirs(torch.tensor(pictures.transpose(0, 3, 1, 2)))
    ours = apply(Inception("fid"), params, (jnp.asarray(pictures, jnp.float32) - 128) / 128)
    np.testing.assert_allclose(ours[0], pooled.numpy(), rtol=1e-3, atol=1e-4 * np.abs(pooled.numpy()).max())
    assert logits.shape == (2, 1008)
