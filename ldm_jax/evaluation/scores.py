"""Scores of a set of samples against a reference, each with its interval, its floor and the number of pictures.

An interval is that of a normal distribution around the score with the spread of a bootstrap over the samples, at 95 %:

(1) score +- 1.96 std_r score(resample_r)

It is not the bootstrap's own percentiles: drawing with repetition makes a Frechet distance larger, so those need not
even hold the score. The floor is the distance of two random halves of the reference: what a perfect model of half as
many pictures would get.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ldm_jax.config import Metric
from ldm_jax.errors import UserError
from ldm_jax.evaluation.class_score import class_probabilities, inception_score, weighted_score
from ldm_jax.evaluation.frechet import frechet_distance, frechet_distance_from, square_root
from ldm_jax.evaluation.kernel_distance import kernel_distance, kernel_distance_subsets, weighted_kernel_distance
from ldm_jax.evaluation.moments import Statistics, statistics_of
from ldm_jax.evaluation.neighbours import MOST_NEIGHBOURS, membership

METRICS: tuple[Metric, ...] = ("fd", "sfd", "kid", "is", "pr", "dc")

FID_SAMPLES = 50_000
"""Samples of what may be called FID."""
_Z = 1.96
KID_SUBSET = 1000
"""Pictures of a subset of the kernel distance."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number and what it takes to trust it."""

    name: str
    value: float
    low: float | None
    """Lower end of the 95 % interval (1); None without a bootstrap."""
    high: float | None
    num_samples: int
    num_reference: int | None
    """None for a score without a reference, or where its file does not say."""
    floor: float | None = None
    """The distance of the halves of the reference."""
    network: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """What a network said about a set of pictures; a reference may be statistics alone."""

    pooled: Float[np.ndarray, "n d"] | None = None
    logits: Float[np.ndarray, "n k"] | None = None
    spatial: Float[np.ndarray, "n s"] | None = None
    statistics: Statistics | None = None
    spatial_statistics: Statistics | None = None

    @property
    def count(self) -> int | None:
        """Pictures, where that is known."""
        if self.pooled is not None:
            return len(self.pooled)
        return None if self.statistics is None else self.statistics.count


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How scores are computed."""

    label: str
    """Network and protocol, as they are part of a score's name."""
    protocol: str
    bootstrap: int = 50
    """Resamples; 0 gives no intervals."""
    seed: int = 0
    kid_subsets: int = 0
    """Subsets of 1000 over which the kernel distance is averaged; 0 takes all pairs."""


def compute_scores(
    samples: FeatureSet, reference: FeatureSet, metrics: Sequence[Metric], options: ScoreOptions
) -> list[Score]:
    """The scores that the features allow, in the order of `metrics`.

    Raises:
        UserError: a metric needs features that the network or the reference does not have.
    """
    table: dict[Metric, Callable[[FeatureSet, FeatureSet, ScoreOptions], list[Score]]] = {
        "fd": _frechet,
        "sfd": _spatial_frechet,
        "kid": _kernel,
        "is": _class_score,
        "pr": lambda a, b, o: _neighbours(a, b, o, ("precision", "recall")),
        "dc": lambda a, b, o: _neighbours(a, b, o, ("density", "coverage")),
    }
    return [score for metric in metrics for score in table[metric](samples, reference, options)]


def possible_metrics(samples: FeatureSet, reference: FeatureSet) -> list[Metric]:
    """The metrics that these features allow."""
    has_reference = reference.pooled is not None
    possible: dict[Metric, bool] = {
        "fd": True,
        "sfd": samples.spatial is not None and _spatial_of(reference) is not None,
        "kid": has_reference,
        "is": samples.logits is not None,
        "pr": has_reference,
        "dc": has_reference,
    }
    return [metric for metric in METRICS if possible[metric]]


def distance_name(label: str, num_samples: int, *, spatial: bool = False) -> str:
    """What a Frechet distance may be called: FID is that of 50,000 samples over TensorFlow's Inception alone."""
    is_fid = label.startswith("inception_") and label != "inception_torchvision"
    if is_fid and num_samples == FID_SAMPLES:
        return f"{'sfid' if spatial else 'fid'}_{label.removeprefix('inception_')}"
    name = f"{'sfd' if spatial else 'fd'}_{label}"
    return f"{name}_n{num_samples}" if is_fid else name


def score_names(metric: Metric, label: str, num_samples: int) -> tuple[str, ...]:
    """What `compute_scores` calls the scores of a metric."""
    names: dict[Metric, tuple[str, ...]] = {
        "fd": (distance_name(label, num_samples),),
        "sfd": (distance_name(label, num_samples, spatial=True),),
        "kid": (f"kid_{label}",),
        "is": (f"is_{label}",),
        "pr": (f"precision_{label}", f"recall_{label}"),
        "dc": (f"density_{label}", f"coverage_{label}"),
    }
    return names[metric]


def resample_weights(count: int, resamples: int, seed: int) -> Float[np.ndarray, "n r"]:
    """How often each picture is drawn, for each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).T.astype(np.float64)


def mean_score(
    name: str,
    values: Float[np.ndarray, " n"],
    options: ScoreOptions,
    *,
    count: int | None = None,
    reference: int | None = None,
    floor: float | None = None,
) -> Score:
    """The mean of a value that each picture has, with the interval (1) over the pictures; `count` samples, or all."""
    weights = resample_weights(len(values), options.bootstrap, options.seed)
    replicas = (values @ weights / len(values)).tolist() if np.isfinite(values).all() else []
    count = len(values) if count is None else count
    return _score(name, float(values.mean()), replicas, count, options, num_reference=reference, floor=floor)


def _score(name: str, value: float, replicas: Sequence[float], count: int, options: ScoreOptions, **more: Any) -> Score:
    spread = _Z * float(np.std(replicas, ddof=1)) if len(replicas) > 1 else None
    return Score(
        name=name,
        value=value,
        low=None if spread is None else value - spread,
        high=None if spread is None else value + spread,
        num_samples=count,
        network=options.label,
        protocol=options.protocol,
        **{"num_reference": None, **more},
    )


def _frechet(samples: FeatureSet, reference: FeatureSet, options: ScoreOptions) -> list[Score]:
    assert samples.pooled is not None  # samples are pictures, of which there are features
    statistics = reference.statistics or statistics_of(_pooled(reference))
    name = distance_name(options.label, len(samples.pooled))
    return [_distance(name, samples, samples.pooled, reference, reference.pooled, statistics, options)]


def _spatial_frechet(samples: FeatureSet, reference: FeatureSet, options: ScoreOptions) -> list[Score]:
    statistics = _spatial_of(reference)
    if samples.spatial is None or statistics is None:
        raise UserError(
            f"sfd needs spatial features, which {options.label} or the reference does not have; leave it out"
        )
    name = distance_name(options.label, len(samples.spatial), spatial=True)
    return [_distance(name, samples, samples.spatial, reference, reference.spatial, statistics, options)]


def _spatial_of(reference: FeatureSet) -> Statistics | None:
    if reference.spatial_statistics is not None or reference.spatial is None:
        return reference.spatial_statistics
    return statistics_of(reference.spatial)


def _distance(
    name: str,
    samples: FeatureSet,
    features: Float[np.ndarray, "n d"],
    reference: FeatureSet,
    reference_features: Float[np.ndarray, "m d"] | None,
    statistics: Statistics,
    options: ScoreOptions,
) -> Score:
    root = square_root(statistics.covariance)
    value = frechet_distance_from(statistics, root, statistics_of(features))
    rng = np.random.default_rng(options.seed)
    replicas = [
        frechet_distance_from(
            statistics, root, statistics_of(features[rng.integers(len(features), size=len(features))])
        )
        for _ in range(options.bootstrap)
    ]
    floor = None if reference_features is None else half_against_half(reference_features, options.seed)
    return _score(name, value, replicas, len(features), options, num_reference=reference.count, floor=floor)


def half_against_half(features: Float[np.ndarray, "n d"], seed: int) -> float | None:
    """The Frechet distance of two random halves; None where a half has no covariance."""
    if len(features) < 4:
        return None
    return frechet_distance(*(statistics_of(half) for half in _halves(features, seed)))


def _kernel(samples: FeatureSet, reference: FeatureSet, options: ScoreOptions) -> list[Score]:
    x, y = _pooled(samples), _pooled(reference)
    a, b = _halves(y, options.seed)
    floor = kernel_distance(a, b) if len(a) >= 2 else None
    if options.kid_subsets:
        parts = kernel_distance_subsets(x, y, subsets=options.kid_subsets, size=KID_SUBSET, seed=options.seed)
        replicas = parts.tolist()
        value = float(parts.mean())
        return [_score(f"kid_{options.label}", value, replicas, len(x), options, num_reference=len(y), floor=floor)]
    weights = [resample_weights(len(z), options.bootstrap, options.seed + i) for i, z in enumerate((x, y))]
    replicas = weighted_kernel_distance(x, y, *weights).tolist() if options.bootstrap else []
    value = kernel_distance(x, y)
    return [_score(f"kid_{options.label}", value, replicas, len(x), options, num_reference=len(y), floor=floor)]


def _class_score(samples: FeatureSet, reference: FeatureSet, options: ScoreOptions) -> list[Score]:
    if samples.logits is None:
        raise UserError(f"is needs logits of classes, which {options.label} does not have; use --network inception")
    probabilities = class_probabilities(samples.logits)
    weights = resample_weights(len(probabilities), options.bootstrap, options.seed)
    replicas = weighted_score(probabilities, weights).tolist() if options.bootstrap else []
    return [_score(f"is_{options.label}", inception_score(samples.logits), replicas, len(probabilities), options)]


def _neighbours(samples: FeatureSet, reference: FeatureSet, options: ScoreOptions, names: Sequence[str]) -> list[Score]:
    x, y = _pooled(samples), _pooled(reference)
    values, common = membership(x, y)._asdict(), {"count": len(x), "reference": len(y)}
    a, b = _halves(y, options.seed)
    halves = membership(a, b)._asdict() if len(a) > MOST_NEIGHBOURS else {}
    floors = {name: float(rows.mean()) for name, rows in halves.items()}
    return [
        mean_score(f"{name}_{options.label}", values[name], options, **common, floor=floors.get(name)) for name in names
    ]


def _halves(features: Float[np.ndarray, "n d"], seed: int) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "m d"]]:
    """Two random halves of a reference."""
    order, half = np.random.default_rng(seed).permutation(len(features)), len(features) // 2
    return features[order[:half]], features[order[half : 2 * half]]


def _pooled(features: FeatureSet) -> Float[np.ndarray, "n d"]:
    if features.pooled is None:
        raise UserError(
            "the reference holds a mean and a covariance alone, which are enough for fd and sfd; give pictures for "
            "other scores"
        )
    return features.pooled
