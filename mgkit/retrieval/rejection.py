"""Queries without an answer in the database, to be rejected by the score of their first image."""

from dataclasses import dataclass

import numpy as np

from mgkit.data.images import evenly
from mgkit.metrics import bootstrap_interval, bootstrap_mean, threshold_at

FOLDS = 20  # of the cross-validation over objects


@dataclass(frozen=True)
class Rejection:
    """How well the score of the first image tells queries with an answer from those without.

    A query is accepted if that score reaches the threshold. Intervals are 95 % confidence intervals, by
    bootstrap over what the queries show.

    best: score of the first image of each query ([Q])
    right: whether that image is a positive ([Q] bool)
    answered: whether the query has a positive in the database ([Q] bool)
    area: under the ROC curve, of accepting queries with an answer against accepting those without
    false_rate: share of queries without answer that the threshold is to accept
    threshold, threshold_interval: learned on all queries without answer
    found_rate, found_interval: share of queries without answer that are accepted, each by the threshold that
    was learned on other objects, see `accepted_by_others`; NaN for a single object
    right_rate, right_interval: share of queries with answer that are accepted, with the right image first
    """

    best: np.ndarray
    right: np.ndarray
    answered: np.ndarray
    area: float
    false_rate: float
    threshold: float
    threshold_interval: tuple[float, float]
    found_rate: float
    found_interval: tuple[float, float]
    right_rate: float
    right_interval: tuple[float, float]

    @property
    def attainable_rate(self) -> float:
        """The least share that a threshold learned on these queries can be expected to accept (0..1)."""
        return 1 / (1 + int((~self.answered).sum()))

    @property
    def accepted(self) -> np.ndarray:
        """Whether each query is accepted, [Q] bool."""
        return self.best >= self.threshold

    def most_to_least_alike(self, count: int) -> np.ndarray:
        """Return positions of at most `count` queries without answer, evenly spaced by falling score."""
        unanswered = np.flatnonzero(~self.answered)
        order = unanswered[np.argsort(-self.best[unanswered], kind="stable")]
        return order[evenly(len(order), count)]

    def roc(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rates (0..1) at every threshold, [T] each, from the highest to the lowest threshold.

        Of queries without answer that are accepted, of queries with answer that are accepted, and of those
        that are accepted with the right image first (detection and identification rate).
        """
        thresholds = np.append(np.inf, np.unique(self.best)[::-1])
        columns = (self.best[~self.answered], self.best[self.answered], self.best[self.answered & self.right])
        totals = (len(columns[0]), len(columns[1]), len(columns[1]))
        return tuple(
            (len(scores) - np.searchsorted(np.sort(scores), thresholds)) / total
            for scores, total in zip(columns, totals, strict=True)
        )


def rejection(
    best: np.ndarray,
    right: np.ndarray,
    answered: np.ndarray,
    groups: np.ndarray,
    *,
    false_rate: float,
    seed: int = 0,
) -> Rejection:
    """Learn the threshold on the queries without answer, and measure what it accepts.

    best, right, answered: see `Rejection`
    groups: number of what each query shows ([Q]); queries of one object are learned from or measured together
    false_rate: share of queries without answer to accept (0..1, exclusive)
    seed: of the parts of the cross-validation

    Raises ValueError unless there are queries with and without an answer.
    """
    from sklearn.metrics import roc_auc_score  # takes two seconds to import, and few sets need it

    if answered.all() or not answered.any():
        raise ValueError("rejection needs queries with an answer, and queries without")
    best = np.asarray(best, np.float64)  # in float32, the threshold would be rounded to a score
    wrong, of_wrong = best[~answered], groups[~answered]
    accepted = accepted_by_others(wrong, of_wrong, false_rate, np.random.default_rng(seed))
    threshold = threshold_at(wrong, false_rate)
    kept = ((best >= threshold) & right)[answered]
    return Rejection(
        best, right, answered, float(roc_auc_score(answered, best)), false_rate, threshold,
        threshold_interval(wrong, of_wrong, false_rate),
        float(accepted.mean()),
        bootstrap_mean(accepted, groups=of_wrong) if np.isfinite(accepted).all() else (np.nan, np.nan),
        float(kept.mean()), bootstrap_mean(kept, groups=groups[answered]),
    )  # fmt: skip


def accepted_by_others(
    scores: np.ndarray, groups: np.ndarray, false_rate: float, generator: np.random.Generator
) -> np.ndarray:
    """Return whether each score [U] is accepted by a threshold of other groups, 0 or 1 (cross-validation).

    The groups are divided into FOLDS parts, or as many as there are, each of which is accepted or not by the
    threshold of the others. NaN for all if there is one group only.
    """
    names = generator.permutation(np.unique(groups))
    if len(names) < 2:
        return np.full(len(scores), np.nan)
    accepted = np.empty(len(scores))
    for part in np.array_split(names, min(FOLDS, len(names))):
        inside = np.isin(groups, part)
        accepted[inside] = scores[inside] >= threshold_at(scores[~inside], false_rate)
    return accepted


def threshold_interval(scores: np.ndarray, groups: np.ndarray, false_rate: float) -> tuple[float, float]:
    """Return the bootstrap interval of the threshold of scores [U], of which whole groups [U] are drawn."""
    names, of_score = np.unique(groups, return_inverse=True)
    return bootstrap_interval(
        lambda counts: threshold_at(np.repeat(scores, counts[of_score]), false_rate), len(names)
    )
