"""How a model is scored while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ldm_jax.config.checks import require, require_not_negative, require_positive

Metric: TypeAlias = Literal["fd", "sfd", "kid", "is", "pr", "dc"]
NetworkName: TypeAlias = Literal["alexnet", "efficientnet_lite0", "inception", "dinov2", "clip"]
InceptionProtocol: TypeAlias = Literal["adm", "pytorch-fid", "clean-fid", "torchvision"]


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Scores of samples that the averaged parameters draw while the second stage trains, as `ldm evaluate` has them.

    All of it may change when a run goes on.
    """

    every: int = 0
    """Steps between two scores; 0 scores never. A best_metric among them is also measured for every checkpoint."""
    num_samples: int = 2000
    """Samples drawn for a score; compare scores of the same number only."""
    network: NetworkName = "alexnet"
    """Feature network."""
    weights: str | None = None
    """File or folder of its weights, where it comes with none."""
    protocol: InceptionProtocol = "adm"
    """How Inception sees a picture."""
    metrics: tuple[Metric, ...] = ("fd", "kid")
    """Frechet distance, the same over spatial features, kernel distance, Inception score, precision and recall, density
    and coverage."""
    split: Literal["train", "test"] = "train"
    """Part of the data that samples are compared with."""
    batch_size: int = 64
    """Samples drawn at once, over all devices."""

    def __post_init__(self) -> None:
        require_not_negative(self, "every")
        require_positive(self, "num_samples", "batch_size")
        require(
            self.num_samples >= 2, f"ScoringConfig.num_samples={self.num_samples} have no covariance; use at least 2"
        )
        require(len(self.metrics) > 0, "ScoringConfig.metrics names none; use fd, or every=0 to score never")
        require(
            len(set(self.metrics)) == len(self.metrics),
            f"ScoringConfig.metrics={' '.join(self.metrics)} names one twice; leave it out",
        )
