"""Known ways in which a first stage goes wrong while its loss still falls, read off the metrics of its logged steps.

They scale with the configuration: an adaptive weight is held against its own past, the codes in use against what a
micro-batch can show, and codes and posterior are judged when the learning rates have had the time to move them. What is
noisy in single batches, right verdicts and the codes in use, is a mean over several reports.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ldm_jax.autoencoder.adversarial import GRADIENT_FLOOR
from ldm_jax.config import AutoencoderVQConfig, DiscriminatorConfig, FirstStageConfig, OptimizerConfig

logger = logging.getLogger(__name__)

Metrics = dict[str, float]

SEVERAL = 5
"""Reports over which what is noisy in single batches is a mean, and which make a past."""
KEPT = 50
"""Newest reports that are looked at."""
TOO_SURE = 0.98
"""Share of right verdicts, as a mean over SEVERAL reports, from which a discriminator has won."""
LEAP = 10.0
"""Times its median before from which an adaptive weight has leapt; in healthy training it wavers by less than 2."""
TOO_FEW = 0.05
"""Share of the codes that could be in use, counted by perplexity, below which most are dead."""
TOO_WIDE = 0.9
"""Mean standard deviation of the posterior from which latents are near the prior and say little."""
REACH = 0.35
"""Sum of the learning rates of all steps by which a posterior has narrowed and codes have spread, where all is well."""


class Report(NamedTuple):
    """The metrics of a logged step."""

    step: int
    """Steps done, this one included."""
    metrics: Metrics


def settled_step(optimizer: OptimizerConfig) -> float:
    """Step at which the learning rates add up to REACH: as far as Adam can have moved a parameter; decay aside."""
    rate, warmup = optimizer.learning_rate, optimizer.warmup_steps
    rising = math.sqrt(2.0 * REACH * warmup / rate)
    return rising if rising < warmup else warmup / 2 + REACH / rate


def first_stage_alarms(config: FirstStageConfig, num_positions: int, history: Sequence[Report]) -> dict[str, str]:
    """What is wrong with a first stage at the last of its reports: a sentence each, with what to do, by its name.

    `num_positions` is the number of latent vectors of a picture.
    """
    found: dict[str, str | None] = {}
    if (judge := config.judge) is not None:
        heard = [report.metrics for report in history if report.step > judge.start_step + judge.warmup_steps]
        found["discriminator"] = _too_sure(heard)
        if judge.adaptive:
            found["verdict's gradient"] = _vanished(heard)
            found["adaptive weight"] = _leapt(judge, [report["adaptive_weight"] for report in heard])
    settled = [report.metrics for report in history if report.step >= settled_step(config.optimizer)]
    if settled:
        if isinstance(config.autoencoder, AutoencoderVQConfig):
            micro_batch = config.training.batch_size // config.training.gradient_accumulation
            found["codes"] = _dead(config.autoencoder.codebook_size, micro_batch * num_positions, settled)
        else:
            found["posterior"] = _collapsed(settled[-1])
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def _mean(reported: Sequence[Metrics], name: str) -> float | None:
    """Over the last SEVERAL, if there are so many."""
    return statistics.fmean(m[name] for m in reported[-SEVERAL:]) if len(reported) >= SEVERAL else None


def _too_sure(heard: Sequence[Metrics]) -> str | None:
    share = _mean(heard, "discriminator_accuracy")
    if share is None or share <= TOO_SURE:
        return None
    return (
        f"the discriminator is right {share:.1%} of the time and teaches little; lower its learning rate, or set "
        "r1_weight or lecam_weight"
    )


def _vanished(heard: Sequence[Metrics]) -> str | None:
    if not heard or heard[-1]["generator_gradient"] > GRADIENT_FLOOR:
        return None
    return (
        f"the gradient of the discriminator's verdict has vanished at the decoder's last layer (its norm is "
        f"{heard[-1]['generator_gradient']:.1g}): it teaches nothing, and what is left of it has the weight "
        f"{heard[-1]['adaptive_weight']:.3g}; lower the discriminator's learning rate, or let it learn for more "
        "warmup_steps"
    )


def _leapt(judge: DiscriminatorConfig, weights: Sequence[float]) -> str | None:
    """Above its past, or from below to its cap and staying there; one that began at its cap is as it was meant."""
    cap = judge.max_adaptive_weight
    help_it = "lower max_adaptive_weight, or let the discriminator learn for more warmup_steps"
    if len(weights) > SEVERAL and weights[-1] > LEAP * (usual := statistics.median(weights[:-1])):
        return (
            f"the adaptive weight has leapt to {weights[-1]:.3g} from about {usual:.3g}: the gradient of the "
            f"discriminator's verdict is vanishing; {help_it}"
        )
    before, recent = weights[:-SEVERAL], weights[-SEVERAL:]
    if len(before) >= SEVERAL and min(recent) >= 0.999 * cap > (usual := statistics.median(before)):
        return (
            f"the adaptive weight has come from about {usual:.3g} to its cap of {cap:g} and stays there: the gradient "
            f"of the discriminator's verdict is vanishing; {help_it}"
        )
    return None


def _dead(codebook_size: int, num_vectors: int, settled: Sequence[Metrics]) -> str | None:
    """Of the codes that so many latent vectors, a micro-batch, can show in use."""
    in_use = _mean(settled, "perplexity")
    if in_use is None or in_use >= TOO_FEW * min(codebook_size, num_vectors):
        return None
    by = f" by {num_vectors} vectors" if num_vectors < codebook_size else ""
    return (
        f"the {codebook_size} codes are used as {in_use:.0f} would be{by}: most are dead; set "
        "codes=average with restart_usage, cosine_codes, or use fewer"
    )


def _collapsed(metrics: Metrics) -> str | None:
    if metrics["posterior_std"] <= TOO_WIDE:
        return None
    return (
        f"the posterior is {metrics['posterior_std']:.2f} wide, nearly the prior: latents say little of their "
        "pictures; lower kl_weight"
    )


class Alarms:
    """Says each thing once, and again when it has been well in between. The past begins where the command does."""

    def __init__(self, find: Callable[[Sequence[Report]], dict[str, str]]) -> None:
        """Watch for what `find` finds in the newest reports, at most KEPT, the last of them last."""
        self._find = find
        self._history: deque[Report] = deque(maxlen=KEPT)
        self._ringing: set[str] = set()

    def __call__(self, metrics: Metrics, step: int) -> int:
        """Warn of what is new; the number of things that are wrong now."""
        self._history.append(Report(step, metrics))
        found = self._find(tuple(self._history))
        for name in found.keys() - self._ringing:
            logger.warning("step %d: %s", step, found[name])
        self._ringing = set(found)
        return len(found)
