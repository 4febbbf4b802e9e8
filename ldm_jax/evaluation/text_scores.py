"""Does a picture belong to its prompt? Scores of pictures beside captions, each with what chance would give.

(1) clip score = mean_i max(100 cos(picture_i, caption_i), 0); Hessel et al. 2021, arXiv:2104.08718, with the factor 100
    of torchmetrics in place of their 2.5; chance is the mean over the captions of others
(2) retrieval at k = share of the pictures whose caption is among the k most similar of all different captions; an equal
    similarity counts against the picture; chance is k over the number of captions
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from ldm_jax.evaluation.scores import Score, ScoreOptions, mean_score

JudgeName: TypeAlias = Literal["clip", "words", "minilm"]
Similarity: TypeAlias = Float[np.ndarray, "n k"]
Own: TypeAlias = Int[np.ndarray, " n"]
"""The column of each picture's caption."""


def clip_score(similarity: Similarity, own: Own, options: ScoreOptions) -> list[Score]:
    """(1)."""
    scaled = np.maximum(100 * similarity, 0)
    values = scaled[np.arange(len(own)), own]
    others = similarity.shape[1] - 1
    chance = float((scaled.sum(1) - values).mean() / others) if others else None
    return [mean_score(f"clip_score_{options.label}", values, options, reference=similarity.shape[1], floor=chance)]


def retrieval(similarity: Similarity, own: Own, options: ScoreOptions) -> list[Score]:
    """(2) at 1, 5 and 10, as far as there are more captions."""
    count, rank = similarity.shape[1], ranks(similarity, own)
    at = [k for k in (1, 5, 10) if k < count]
    return [
        mean_score(
            f"retrieval_at_{k}_{options.label}", (rank <= k).astype(float), options, reference=count, floor=k / count
        )
        for k in at
    ]


def ranks(similarity: Similarity, own: Own) -> Int[np.ndarray, " n"]:
    """From 1 on: how many captions are at least as similar as the picture's own, itself among them."""
    mine = similarity[np.arange(len(own)), own]
    return (similarity >= mine[:, None]).sum(1)


TEXT_SCORES: dict[JudgeName, tuple[Callable[[Similarity, Own, ScoreOptions], list[Score]], ...]] = {
    "clip": (clip_score, retrieval),
    "words": (retrieval,),
    "minilm": (retrieval,),
}
"""What each judge scores."""


def text_scores(judge: JudgeName, similarity: Similarity, own: Own, options: ScoreOptions) -> list[Score]:
    """All scores of a judge."""
    return [score for compute in TEXT_SCORES[judge] for score in compute(similarity, own, options)]


def different(captions: Sequence[str]) -> tuple[list[str], Own]:
    """The different captions in their order, and the place of each among them."""
    places = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    return list(places), np.array([places[caption] for caption in captions], np.int64)
