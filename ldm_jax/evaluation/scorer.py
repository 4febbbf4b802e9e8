"""Scores of a model in training: samples drawn and looked at by all devices together, nothing written.

Sample i has the noise and the condition of sample i of `ldm evaluate`, whatever the step, so that two steps differ by
their parameters alone. What a score needs beside the model is made before the first step, where it can still be missed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from ldm_jax import sharding
from ldm_jax.config import ScoringConfig
from ldm_jax.data.preparation import default_cache_dir
from ldm_jax.errors import UserError
from ldm_jax.evaluation.drawing import held_out_captions, sample_reader
from ldm_jax.evaluation.features import extract_features
from ldm_jax.evaluation.network import FeatureNetwork, load_network
from ldm_jax.evaluation.pictures import source_pictures
from ldm_jax.evaluation.scores import FeatureSet, ScoreOptions, compute_scores, possible_metrics, score_names
from ldm_jax.model import Params
from ldm_jax.sampling.session import Session
from ldm_jax.training.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """Everything but the model: network, reference and conditions."""

    config: ScoringConfig
    mesh: Mesh
    network: FeatureNetwork
    params: Params
    """Of the network, on the devices."""
    reference: FeatureSet
    captions: Sequence[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores."""
        config, label = self.config, self.network.label
        return tuple(name for metric in config.metrics for name in score_names(metric, label, config.num_samples))

    def score(self, session: Session) -> dict[str, float]:
        """The scores of a model, and of how many samples; all processes have to call it.

        Raises:
            UserError: it draws what is no picture.
        """
        config, experiment = self.config, session.experiment
        read = sample_reader(
            session, experiment.sampling, self.mesh, self.captions, seed=experiment.seed, batch_size=config.batch_size
        )
        samples = self._features(read)
        options = ScoreOptions(label=self.network.label, protocol=self.network.protocol, bootstrap=0)
        scores = compute_scores(samples, self.reference, config.metrics, options)
        return {score.name: score.value for score in scores} | {"score_samples": float(config.num_samples)}

    def _features(self, read: Callable[[int, int], UInt8[np.ndarray, "b h w c"]]) -> FeatureSet:
        size, parts = self.config.batch_size, []
        for start in range(0, self.config.num_samples, size):
            batch = sharding.place_batch(self.mesh, read(start, start + size))
            parts.append([sharding.to_host(rows) for rows in self.network.extract(self.params, batch)])
        columns = (np.concatenate(column)[: self.config.num_samples] for column in zip(*parts, strict=True))
        pooled, logits, spatial = (rows if rows.shape[1] else None for rows in columns)
        return FeatureSet(pooled=pooled, logits=logits, spatial=spatial)


def make_scorer(work: Workspace, session: Session, config: ScoringConfig) -> Scorer:
    """The scorer of a run; features of the reference are computed now, or found in the user's cache.

    Raises:
        UserError: weights of the network are missing or another network's, it does not allow a metric, the samples
            cannot be split over the devices, or the data lack the captions that samples are drawn for.
    """
    shards = sharding.num_batch_shards(work.mesh)
    if config.batch_size % shards:
        raise UserError(
            f"scoring.batch_size={config.batch_size} cannot be split over {shards} devices; nearest that can: "
            f"{max(round(config.batch_size / shards), 1) * shards}"
        )
    network = _network(config)
    captions = held_out_captions(session)
    source = work.shelf.source(config.split)  # pictures, also where the model learns from latents
    local = max(config.batch_size // jax.process_count(), 1)
    pictures = source_pictures(source, work.experiment.data)
    reference = extract_features(pictures, network, default_cache_dir() / "evaluation", local)
    scorer = Scorer(config, work.mesh, network, sharding.place(work.mesh, network.params), reference, captions)
    _check(scorer)
    logger.info(
        "every %d steps %s of %d samples against %d pictures of %s",
        *(config.every, ", ".join(scorer.names), config.num_samples, pictures.count, pictures.name),
    )
    return scorer


def _network(config: ScoringConfig) -> FeatureNetwork:
    weights = None if config.weights is None else Path(config.weights)
    try:
        return load_network(config.network, weights, config.protocol)
    except UserError as error:
        raise UserError(
            f"scoring.network={config.network}: {error} (in training: --scoring.weights, --scoring.network; "
            "--scoring.every 0 scores never)"
        ) from error


def _check(scorer: Scorer) -> None:
    config, label = scorer.config, scorer.network.label
    possible = possible_metrics(scorer.reference, scorer.reference)
    for metric in config.metrics:
        if metric not in possible:
            raise UserError(f"scoring.metrics={metric} cannot be had over {label}; usable: {' '.join(possible)}")
    pooled = scorer.reference.pooled
    assert pooled is not None  # the reference is pictures
    counts = {f"scoring.num_samples={config.num_samples}": config.num_samples}
    counts |= {f"the {len(pooled)} reference pictures of scoring.split={config.split}": len(pooled)}
    for what, count in counts.items():
        if "fd" in config.metrics and count <= pooled.shape[1]:
            logger.warning(
                "%s are no more than the %d features of %s: a Frechet distance of so few is mostly bias, and compares "
                "with nothing but the same number of them",
                *(what, pooled.shape[1], label),
            )
