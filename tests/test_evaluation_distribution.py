"""Scores of distributions: closed forms, other implementations of the same formula, and what has to be refused."""

import dataclasses
import itertools

import numpy as np
import pytest

from ldm_jax.errors import UserError
from ldm_jax.evaluation import scores as scores_module
from ldm_jax.evaluation.class_score import class_probabilities, inception_score, weighted_score
from ldm_jax.evaluation.frechet import frechet_distance, square_root
from ldm_jax.evaluation.kernel_distance import (
    kernel,
    kernel_distance,
    kernel_distance_subsets,
    weighted_kernel_distance,
)
from ldm_jax.evaluation.moments import BLOCK, Moments, Statistics, statistics_of
from ldm_jax.evaluation.neighbours import membership
from ldm_jax.evaluation.scores import (
    FeatureSet,
    ScoreOptions,
    compute_scores,
    distance_name,
    half_against_half,
    possible_metrics,
    resample_weights,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)) @ RNG.normal(size=(6, 6)) + 5
Y = RNG.normal(size=(200, 6)) + 5
OPTIONS = ScoreOptions(label="alexnet", protocol="none", bootstrap=8)


def of(mean: list[float], covariance: np.ndarray) -> Statistics:
    return Statistics(mean=np.array(mean, np.float64), covariance=covariance, count=None)


def test_moments_are_those_of_numpy_however_the_rows_come():
    x = np.concatenate([X, X[::-1] * 2, Y])
    results = []
    for size in (1, 7, BLOCK, len(x)):
        moments = Moments()
        for start in range(0, len(x), size):
            moments.add(x[start : start + size])
        results.append(moments.statistics())
    assert results[0].count == len(x)
    np.testing.assert_allclose(results[0].mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(results[0].covariance, np.cov(x.T), rtol=1e-12)
    for first, second in itertools.pairwise(results):  # to the bit
        np.testing.assert_array_equal(first.mean, second.mean)
        np.testing.assert_array_equal(first.covariance, second.covariance)


def test_moments_keep_their_digits_far_from_zero():
    x = X.astype(np.float64) + 1e7
    np.testing.assert_allclose(statistics_of(x).covariance, np.cov(X.T), rtol=1e-6)


def test_one_picture_has_no_covariance():
    with pytest.raises(UserError, match="1 pictures have no covariance; give at least two"):
        statistics_of(X[:1])


def test_the_frechet_distance_has_its_closed_forms():
    a, b = np.diag([4.0, 9.0]), np.diag([1.0, 25.0])
    assert frechet_distance(of([0, 0], a), of([3, 4], a)) == pytest.approx(25)
    assert frechet_distance(of([0, 0], a), of([0, 0], b)) == pytest.approx((2 - 1) ** 2 + (3 - 5) ** 2)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(2, 2)))[0]
    turned = (turn @ a @ turn.T, turn @ b @ turn.T)
    assert frechet_distance(of([0, 0], turned[0]), of([0, 0], turned[1])) == pytest.approx(5)


def test_the_frechet_distance_is_a_distance_also_of_few_pictures():
    few = statistics_of(X[:4])  # of rank 3
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    forward, back = frechet_distance(few, statistics_of(Y)), frechet_distance(statistics_of(Y), few)
    assert forward == pytest.approx(back, rel=1e-6)
    assert forward > 0


def test_the_frechet_distance_is_that_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = statistics_of(X), statistics_of(Y)
    root = np.real(linalg.sqrtm(a.covariance @ b.covariance))
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(square_root(a.covariance), linalg.sqrtm(a.covariance), rtol=1e-6, atol=1e-8)


def test_statistics_of_two_networks_or_of_damaged_features_are_refused():
    with pytest.raises(UserError, match="statistics of 2 features cannot be compared with those of 3: they are of two"):
        frechet_distance(of([0, 0], np.eye(2)), of([0, 0, 0], np.eye(3)))
    with pytest.raises(UserError, match="hold numbers that are not finite"):
        frechet_distance(of([0, np.nan], np.eye(2)), of([0, 0], np.eye(2)))


def test_the_kernel_distance_is_the_unbiased_sum_over_pairs():
    x, y = X[:9], Y[:7]
    k = {name: kernel(*pair) for name, pair in {"xx": (x, x), "yy": (y, y), "xy": (x, y)}.items()}
    expected = (k["xx"].sum() - np.trace(k["xx"])) / 72 + (k["yy"].sum() - np.trace(k["yy"])) / 42 - 2 * k["xy"].mean()
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
    means = [kernel_distance(*np.split(np.random.default_rng(i).normal(size=(40, 3)), 2)) for i in range(200)]
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(200)  # around 0 for one distribution


def test_weights_of_one_are_no_weights_and_copies_are_never_paired():
    weights = np.array([[1, 2], [1, 1], [1, 0]], np.float64)
    both = weighted_kernel_distance(X[:3], Y[:4], weights, np.ones((4, 2)))
    assert both[0] == pytest.approx(kernel_distance(X[:3], Y[:4]))
    k, kxy = kernel(X[:2], X[:2]), kernel(X[:2], Y[:4])
    within = kernel_distance(X[:2], Y[:4]) - 0  # of the second set alone
    expected = k[0, 1] + (within - k[0, 1] + 2 * kxy.mean()) - 2 * (2 * kxy[0] + kxy[1]).mean() / 3
    assert both[1] == pytest.approx(expected)


def test_subsets_average_to_the_kernel_distance():
    parts = kernel_distance_subsets(X, Y, subsets=60, size=50)
    assert parts.mean() == pytest.approx(kernel_distance(X, Y), rel=0.1)
    with pytest.raises(UserError, match="subsets of 500 are larger than a set of 200 pictures"):
        kernel_distance_subsets(X, Y, subsets=2, size=500)
    with pytest.raises(UserError, match="a kernel distance of 1 to 200 pictures does not exist"):
        kernel_distance(X[:1], Y)


def test_the_inception_score_goes_from_one_to_the_number_of_classes():
    clear = np.tile(np.eye(5) * 100, (20, 1))
    assert inception_score(clear, splits=2) == pytest.approx(5)
    assert inception_score(np.zeros((40, 5))) == pytest.approx(1)
    logits = np.random.default_rng(0).normal(size=(30, 4)) * 900  # softmax without overflow
    p = class_probabilities(logits)
    np.testing.assert_allclose(p.sum(1), 1)
    assert 1 <= weighted_score(p, np.ones((30, 1)))[0] <= 4


def test_neighbours_are_counted_as_the_papers_say():
    reference = np.array([[0.0], [1], [2], [3], [10], [11], [12]])
    samples = np.array([[0.5], [1.5], [2.5], [100], [101], [102], [103]])
    found = membership(samples, reference, manifold_neighbours=1, density_neighbours=2)
    np.testing.assert_array_equal(found.precision, [1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.recall, [1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.density * 2, [2, 4, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.coverage, [1, 1, 1, 1, 0, 0, 0])
    with pytest.raises(UserError, match="7 samples and 5 reference pictures are too few for the 5 nearest neighbours"):
        membership(samples, reference[:5])


def test_copies_of_one_picture_are_neighbours_of_each_other():
    x = np.concatenate([np.zeros((4, 2)), [[5.0, 0]] * 4])
    found = membership(x, x, manifold_neighbours=3, density_neighbours=3)
    assert found.precision.mean() == found.recall.mean() == found.coverage.mean() == 1


def test_every_distance_has_the_halves_of_the_reference_beside_it():
    options = ScoreOptions(label="x", protocol="", bootstrap=0)
    scores = compute_scores(FeatureSet(pooled=X), FeatureSet(pooled=Y), ("kid", "pr", "dc"), options)
    floors = {score.name: score.floor for score in scores}
    assert None not in floors.values()
    assert floors["precision_x"] > 0.5 and floors["coverage_x"] > 0.5, "halves of one distribution are alike"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores_module, "KID_SUBSET", 20)
        (subsets,) = compute_scores(
            FeatureSet(pooled=X), FeatureSet(pooled=Y), ("kid",), dataclasses.replace(options, kid_subsets=3)
        )
    assert subsets.floor == floors["kid_x"]


def test_scores_come_with_their_number_interval_floor_and_network():
    samples, reference = FeatureSet(pooled=X), FeatureSet(pooled=Y)
    scores = compute_scores(samples, reference, ["fd", "kid", "pr", "dc"], OPTIONS)
    names = ["fd_alexnet", "kid_alexnet", "precision_alexnet", "recall_alexnet", "density_alexnet", "coverage_alexnet"]
    assert [score.name for score in scores] == names
    for score in scores:
        assert (score.num_samples, score.num_reference, score.network) == (300, 200, "alexnet")
        assert score.low is not None and score.high is not None and score.low <= score.value <= score.high
    assert scores[0].value == pytest.approx(frechet_distance(statistics_of(X), statistics_of(Y)))
    assert scores[0].floor == half_against_half(Y, 0)
    assert scores[0].floor < scores[0].value
    assert compute_scores(samples, reference, ["kid"], OPTIONS) == scores[1:2], "the same seed, the same interval"


def test_an_interval_holds_what_more_pictures_would_give():
    rng, widths = np.random.default_rng(3), []
    for n in (100, 1600):
        samples = FeatureSet(pooled=rng.normal(size=(n, 2)) + 1)
        truth = FeatureSet(statistics=of([0, 0], np.eye(2)))
        (score,) = compute_scores(samples, truth, ["fd"], ScoreOptions(label="a", protocol="", bootstrap=40))
        assert score.low is not None and score.high is not None
        assert score.low < 2 < score.high
        widths.append(score.high - score.low)
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.5)  # as 1 / sqrt(n)


def test_a_score_without_its_features_is_refused():
    samples, given = FeatureSet(pooled=X), FeatureSet(statistics=statistics_of(Y))
    assert possible_metrics(samples, given) == ["fd"]
    with pytest.raises(UserError, match="the reference holds a mean and a covariance alone, which are enough for fd"):
        compute_scores(samples, given, ["kid"], OPTIONS)
    with pytest.raises(UserError, match="is needs logits of classes, which alexnet does not have; use --network incep"):
        compute_scores(samples, given, ["is"], OPTIONS)
    with pytest.raises(UserError, match="sfd needs spatial features, which alexnet or the reference does not have"):
        compute_scores(samples, given, ["sfd"], OPTIONS)


def test_other_scores_come_where_their_features_are():
    logits = np.random.default_rng(0).normal(size=(300, 5))
    full = FeatureSet(pooled=X, spatial=X[:, :3], logits=logits)
    reference = FeatureSet(pooled=Y, spatial=Y[:, :3])
    assert possible_metrics(full, reference) == ["fd", "sfd", "kid", "is", "pr", "dc"]
    spatial, score = compute_scores(full, reference, ["sfd", "is"], OPTIONS)
    assert (spatial.name, score.name) == ("sfd_alexnet", "is_alexnet")
    assert spatial.value == pytest.approx(frechet_distance(statistics_of(X[:, :3]), statistics_of(Y[:, :3])))
    assert score.num_reference is None


def test_fid_is_said_of_fifty_thousand_over_tensorflows_inception_alone():
    assert distance_name("inception_adm", 50_000) == "fid_adm"
    assert distance_name("inception_adm", 50_000, spatial=True) == "sfid_adm"
    assert distance_name("inception_clean_fid", 10_000) == "fd_inception_clean_fid_n10000"
    assert distance_name("inception_torchvision", 50_000) == "fd_inception_torchvision"
    assert distance_name("alexnet", 50_000) == "fd_alexnet"


def test_resamples_draw_as_many_as_there_are():
    weights = resample_weights(20, 3, seed=1)
    np.testing.assert_array_equal(weights.sum(0), 20)
    assert not np.array_equal(weights[:, 0], weights[:, 1])
