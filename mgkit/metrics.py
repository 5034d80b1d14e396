"""Accuracy and retrieval measures: arrays in, numbers out."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def topk_accuracy(logits: Tensor, target: Tensor, ks: Sequence[int] = (1, 5)) -> list[float]:
    """Share of rows whose target is among the k highest scores, for each k, in 0..1 (section 4.2).

    logits [N,K], target [N]. A k above K counts as K. Ties go against the target: equal scores rank before it.
    Raises ValueError for no rows.
    """
    return [float((target_ranks(logits, target) < k).double().mean()) for k in ks]


def target_ranks(logits: Tensor, target: Tensor) -> Tensor:
    """How many other classes score at least as high as the target, [N]; NaN scores rank the target last."""
    if not len(target) or logits.shape[:1] != target.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must be [N,K] and [N], N > 0"
        )
    own = logits.gather(1, target[:, None])
    return logits.shape[1] - 1 - (logits < own).sum(1)


def positive_ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """0-based ranks of the positives in the ranking by falling score, ascending.

    scores [N]: similarity of each image, the query left out. positives: their indices. Ties go against the positives,
    so that the order of the images does not matter.
    """
    scores = np.asarray(scores)
    is_positive = np.zeros(len(scores), dtype=bool)
    is_positive[positives] = True
    good = np.sort(scores[is_positive])[::-1]
    bad = np.sort(scores[~is_positive])
    above = len(bad) - np.searchsorted(bad, good, side="left")  # negatives that score as high or higher
    return above + np.arange(len(good))


def average_precision(ranks: Sequence[int], n_positives: int) -> float:
    """Area under precision-recall by the trapezoid rule, in 0..1 (the Holidays protocol).

    ranks: 0-based ranks of the positives that were found, in any order, the query not counted. n_positives: how many
    there are, found or not. Raises ValueError for n_positives < 1, or more or repeated or negative ranks.
    """
    ranks = np.sort(np.asarray(ranks, dtype=np.int64))
    if n_positives < 1 or len(ranks) > n_positives:
        raise ValueError(
            f"n_positives must be at least 1 and no less than the {len(ranks)} ranks, got {n_positives}"
        )
    if len(ranks) and (ranks[0] < 0 or (np.diff(ranks) == 0).any()):
        raise ValueError(f"ranks must be distinct and >= 0, got {ranks.tolist()}")
    hits = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, hits / np.maximum(ranks, 1))  # precision just above this positive
    after = (hits + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / n_positives)


def ukbench_score(ranks: Sequence[Sequence[int]]) -> float:
    """Mean number of each query's object among its first four, the query itself included: best 4.0.

    ranks: for each query the 0-based ranks of its object's four images. Raises ValueError for no query.
    """
    if not len(ranks):
        raise ValueError("ukbench_score needs at least one query")
    return float(np.mean([np.sum(np.asarray(of_query) < 4) for of_query in ranks]))
