"""Which checkpoints of a stage are kept: the newest, the best, and those of every so many steps for good."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from ldm_jax.config import TrainingConfig
from ldm_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class KeepPolicy:
    """What is kept; a checkpoint goes when no rule wants it."""

    newest: int = 2
    best: int = 0
    metric: str = "heldout_loss"
    mode: Literal["min", "max"] = "min"
    every: int = 0

    @classmethod
    def of(cls, config: TrainingConfig) -> "KeepPolicy":
        """The policy of a training stage."""
        return cls(
            newest=config.keep_checkpoints,
            best=config.keep_best,
            metric=config.best_metric,
            mode=config.best_mode,
            every=config.keep_every,
        )

    def kept(self, metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps to keep, of the complete checkpoints by step with what was measured at each."""
        newest = sorted(metrics)[-self.newest :]
        good = [step for step in metrics if self.every and step % self.every == 0]
        return {*newest, *self._ranked(metrics)[: self.best], *good}

    def _ranked(self, metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """Steps at which the metric was measured, best first; of equal ones the newer."""
        sign = 1 if self.mode == "min" else -1
        measured = [step for step, values in metrics.items() if self.metric in values]
        return sorted(measured, key=lambda step: (sign * metrics[step][self.metric], -step))

    def check_measured(self, names: Collection[str]) -> None:
        """Refuse to go by a metric that is not among what is measured.

        Raises:
            UserError: naming those that are.
        """
        if self.best and self.metric not in names:
            raise UserError(
                f"TrainingConfig.best_metric={self.metric!r} is not measured here, so no checkpoint is the best by it; "
                f"use one of {', '.join(sorted(names))}"
            )
