"""Known ways in which a first stage goes wrong while its loss still falls, read off its metrics."""

import logging
from collections.abc import Callable

from ldm_jax.config import AutoencoderVQConfig, FirstStageConfig

logger = logging.getLogger(__name__)

Metrics = dict[str, float]

TOO_SURE = 0.98
"""Share of right verdicts from which a discriminator has won."""
TOO_FEW = 0.05
"""Share of the codes, counted by perplexity, below which most are dead."""
SETTLED = 200
"""Steps after which a posterior has narrowed and codes have spread, where all is well."""
TOO_WIDE = 0.9
"""Mean standard deviation of the posterior from which latents are near the prior and say little."""


def first_stage_alarms(config: FirstStageConfig, metrics: Metrics, step: int) -> dict[str, str]:
    """What is wrong with a first stage after `step`: a sentence each, with what to do about it, by its name."""
    autoencoder, judge = config.autoencoder, config.judge
    found: dict[str, str] = {}
    if judge is not None and step >= judge.start_step + judge.warmup_steps:
        if metrics["discriminator_accuracy"] > TOO_SURE:
            found["discriminator"] = (
                f"the discriminator is right {metrics['discriminator_accuracy']:.0%} of the time and teaches little; "
                "lower its learning rate, or set r1_weight or lecam_weight"
            )
        if judge.adaptive and metrics["adaptive_weight"] >= 0.999 * judge.max_adaptive_weight:
            found["adaptive weight"] = (
                f"the adaptive weight is at its cap of {judge.max_adaptive_weight:g}: the discriminator's gradient has "
                "vanished; lower max_adaptive_weight, or let it learn for more warmup_steps"
            )
    if step < SETTLED:
        return found
    if isinstance(autoencoder, AutoencoderVQConfig):
        if metrics["perplexity"] < TOO_FEW * autoencoder.codebook_size:
            found["codes"] = (
                f"the {autoencoder.codebook_size} codes are used as {metrics['perplexity']:.0f} would be: most are "
                "dead; set codes=average with restart_usage, cosine_codes, or use fewer"
            )
    elif metrics["posterior_std"] > TOO_WIDE:
        found["posterior"] = (
            f"the posterior is {metrics['posterior_std']:.2f} wide, nearly the prior: latents say little of their "
            "pictures; lower kl_weight"
        )
    return found


class Alarms:
    """Says each thing once, and again when it has been well in between."""

    def __init__(self, find: Callable[[Metrics, int], dict[str, str]]) -> None:
        """Watch for what `find` finds in the metrics of a step."""
        self._find = find
        self._ringing: set[str] = set()

    def __call__(self, metrics: Metrics, step: int) -> int:
        """Warn of what is new; the number of things that are wrong now."""
        found = self._find(metrics, step)
        for name in found.keys() - self._ringing:
            logger.warning("step %d: %s", step, found[name])
        self._ringing = set(found)
        return len(found)
