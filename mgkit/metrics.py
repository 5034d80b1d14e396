"""Accuracy and retrieval measures with bootstrap confidence intervals.

Ties are broken pessimistically: incorrect items rank before correct ones of equal score. No measure depends
on the order of its input.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


def topk_accuracy(logits: Tensor, target: Tensor, ks: Sequence[int] = (1, 5)) -> list[float]:
    """Return the top-k accuracy for each k, in 0..1 (section 4.2).

    logits: class scores ([N,K])
    target: class of each image ([N])
    ks: numbers of classes; a k above K counts as K

    Ties rank before the target. Raises ValueError for N = 0 or shapes that do not fit.
    """
    return [float((target_ranks(logits, target) < k).cpu().double().mean()) for k in ks]


def target_ranks(logits: Tensor, target: Tensor) -> Tensor:
    """Return how many other classes score at least as high as the target, [N]; NaN ranks last."""
    if not len(target) or logits.shape[:1] != target.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must be [N,K] and [N], N > 0"
        )
    own = logits.gather(1, target[:, None])
    return logits.shape[1] - 1 - (logits < own).sum(1)


# --- Measures of one query


def positive_ranks(scores: ArrayLike, positives: ArrayLike, *, junk: ArrayLike = ()) -> np.ndarray:
    """Return the 0-based ranks of the positives by decreasing score, ascending ([P]).

    scores: similarity of each database image, without the query ([N])
    positives: indices of the positives ([P])
    junk: indices of images that are removed from the ranking (revisited Oxford and Paris)

    Raises ValueError for non-finite scores, indices outside 0..N-1, and positives that are repeated or junk.
    """
    scores = finite_scores(scores)
    positives = image_indices(positives, "positives", len(scores))
    junk = image_indices(junk, "junk", len(scores))
    check_distinct(np.sort(positives), "positives")
    if np.isin(positives, junk).any():
        raise ValueError(f"image {np.intersect1d(positives, junk)[0]} is in both positives and junk")
    if not len(positives):
        return positives
    own = np.sort(scores[positives])  # [P], ascending
    rival = scores >= own[0]  # [N], only these can rank before a positive and need sorting
    rival[positives] = False
    rival[junk] = False
    rivals = np.sort(scores[rival])
    above = len(rivals) - np.searchsorted(rivals, own, side="left")  # [P], rivals before each
    return above[::-1] + np.arange(len(own))


def average_precision(
    ranks: ArrayLike, n_positives: int, *, rule: Literal["trapezoid", "rectangle"] = "trapezoid"
) -> float:
    """Return the average precision of one query, in 0..1.

    ranks: 0-based ranks of the positives that were retrieved, in any order, without query and junk
    n_positives: number of positives, retrieved or not
    rule: `trapezoid` averages the precision before and at each positive (Holidays, Copydays, revisited
    Oxford and Paris); `rectangle` takes the precision at the positive (trec_eval, micro-AP)

    Raises ValueError for n_positives < 1, more ranks than positives, and repeated or negative ranks.
    """
    ranks = sorted_ranks(ranks, n_positives)
    hits = np.arange(len(ranks))
    at = (hits + 1) / (ranks + 1)
    if rule == "rectangle":
        return float(at.sum() / n_positives)
    if rule != "trapezoid":
        raise ValueError(f"rule must be trapezoid or rectangle, got {rule!r}")
    before = np.where(ranks == 0, 1.0, hits / np.maximum(ranks, 1))
    return float(((before + at) / 2).sum() / n_positives)


def average_precision_at(ranks: ArrayLike, n_positives: int, k: int) -> float:
    """Return the average precision of the first k images of one query, in 0..1 (mAP@100 of GLDv2).

    ranks: 0-based ranks of the positives that were retrieved, without query and junk
    n_positives: number of positives, retrieved or not
    k: number of images

    The precisions at the positives among the first k, by the rectangle rule, divided by the number of
    positives that could be there. Raises ValueError for k < 1, and as `average_precision`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    ranks = sorted_ranks(ranks, n_positives)
    return average_precision(ranks[ranks < k], min(n_positives, k), rule="rectangle")


def recall_at(first_ranks: ArrayLike, k: int) -> float:
    """Return the share of queries with a positive among the first k images (Recall@k), in 0..1.

    first_ranks: 0-based rank of the first positive of each query ([Q])

    Raises ValueError for k < 1 or no query.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    ranks = whole_numbers(first_ranks, "first_ranks")
    if not len(ranks):
        raise ValueError("first_ranks must hold at least one rank: leave out queries without positives")
    return float((ranks < k).mean())


def precision_at(ranks: ArrayLike, k: int) -> float:
    """Return the precision at k of one query, in 0..1 (mP@k of revisited Oxford and Paris).

    ranks: 0-based ranks of all positives, without junk
    k: number of images; at most up to the last positive

    Raises ValueError for k < 1 or no ranks.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not np.size(ranks):
        raise ValueError("ranks must hold at least one rank: leave out queries without positives")
    ranks = sorted_ranks(ranks, np.size(ranks))
    cut = min(k, int(ranks[-1]) + 1)
    return float((ranks < cut).sum() / cut)


def ukbench_score(ranks: Sequence[Sequence[int]]) -> float:
    """Return the mean number of correct images among the first four, the query included (0..4).

    ranks: 0-based ranks of the four images of each query's object

    Raises ValueError for no query.
    """
    if not len(ranks):
        raise ValueError("ukbench_score needs at least one query")
    return float(np.mean([np.sum(np.asarray(of_query) < 4) for of_query in ranks]))


def mean_precision_recall(
    ranks_per_query: Sequence[ArrayLike], n_positives_per_query: Sequence[int], points: int = 101
) -> tuple[np.ndarray, np.ndarray]:
    """Return (recall, precision) [points] each: precision at equally spaced recalls, averaged over queries.

    ranks_per_query, n_positives_per_query: as for `average_precision`; queries with 0 positives are skipped
    points: number of recalls from 0 to 1

    The precision at a recall is the highest at that recall or above, and 0 beyond the last positive
    retrieved. Raises ValueError for no query with positives, unequal lengths, or fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    if len(ranks_per_query) != len(n_positives_per_query):
        count, other = len(ranks_per_query), len(n_positives_per_query)
        raise ValueError(f"ranks of {count} queries but n_positives of {other}: they must be equal in number")
    curves, step = [], np.arange(points)
    for ranks, n_positives in zip(ranks_per_query, n_positives_per_query, strict=True):
        if n_positives == 0 and not np.size(ranks):
            continue
        ranks = sorted_ranks(ranks, n_positives)
        best = np.zeros(n_positives)  # precision by number of positives retrieved, minus 1
        best[: len(ranks)] = np.arange(1, len(ranks) + 1) / (ranks + 1)
        best = np.maximum.accumulate(best[::-1])[::-1]
        # Positives needed for each recall, rounded up; in integers, since 0.07 * 100 > 7 in floats.
        needed = -(-step * n_positives // (points - 1))
        curves.append(best[np.maximum(needed, 1) - 1])
    if not curves:
        raise ValueError("mean_precision_recall needs at least one query with positives")
    return step / (points - 1), np.mean(curves, axis=0)


# --- Measures of the pooled predictions of all queries


def micro_average_precision(
    scores: ArrayLike, correct: ArrayLike, n_positives: int, *, weights: ArrayLike | None = None
) -> float:
    """Return the average precision of all predictions in one ranking, by the rectangle rule (DISC21).

    scores: of each predicted pair of query and image ([R])
    correct: whether the pair is in the ground truth ([R], bool)
    n_positives: number of pairs in the ground truth, predicted or not (weighted, if there are weights)
    weights: number of times each prediction counts ([R], integers >= 0)

    Returns NaN for n_positives = 0. Raises ValueError for non-finite scores, arrays that do not fit, or more
    correct predictions than n_positives.
    """
    hits = pooled_hits(scores, correct, n_positives, weights)
    if not n_positives:
        return np.nan
    _, precision = found_and_precision(hits)
    return float(precision[hits].sum() / n_positives)


def recall_at_precision(
    scores: ArrayLike,
    correct: ArrayLike,
    n_positives: int,
    precision: float = 0.9,
    *,
    weights: ArrayLike | None = None,
) -> float:
    """Return the highest recall at which the pooled predictions reach a precision (ISC2021), in 0..1.

    precision: minimum precision (0..1); 0 is returned where it is never reached
    scores, correct, n_positives, weights: as for `micro_average_precision`, as are NaN and errors

    Each position is an operating point, also among ties, as in the official evaluation. Raises ValueError
    for a precision outside 0..1.
    """
    if not 0 <= precision <= 1:
        raise ValueError(f"precision must be in 0..1, got {precision}")
    hits = pooled_hits(scores, correct, n_positives, weights)
    if not n_positives:
        return np.nan
    found, reached = found_and_precision(hits)
    return float(found[reached >= precision].max(initial=0) / n_positives)


def precision_recall_curve(
    scores: ArrayLike, correct: ArrayLike, n_positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (recall, precision) [R] each, after each position in the ranking of the pooled predictions.

    scores, correct, n_positives: as for `micro_average_precision`, as are errors; n_positives >= 1
    """
    hits = pooled_hits(scores, correct, n_positives, None)
    if not n_positives:
        raise ValueError("n_positives must be at least 1, got 0")
    found, precision = found_and_precision(hits)
    return found / n_positives, precision


def pooled_hits(
    scores: ArrayLike, correct: ArrayLike, n_positives: int, weights: ArrayLike | None
) -> np.ndarray:
    """Return whether the prediction at each position is correct ([W] bool, W: sum of the weights).

    Sorted by decreasing score, incorrect first among ties; a prediction of weight w is repeated w times.
    """
    scores, correct = finite_scores(scores), np.asarray(correct)
    if correct.dtype != bool or correct.shape != scores.shape:
        got = f"{correct.dtype} {list(correct.shape)}"
        raise ValueError(f"correct must be bool {list(scores.shape)} like the scores, got {got}")
    order = np.lexsort((~correct, scores))[::-1]
    hits = correct[order]
    if weights is not None:
        weights = whole_numbers(weights, "weights")
        if weights.shape != scores.shape or (weights < 0).any():
            raise ValueError(f"weights must be {len(scores)} integers >= 0, one per score")
        hits = np.repeat(hits, weights[order])
    if n_positives < hits.sum():
        raise ValueError(f"n_positives must be >= the {hits.sum()} correct predictions, got {n_positives}")
    return hits


def found_and_precision(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of correct predictions and the precision after each position, [W] each."""
    found = np.cumsum(hits)
    return found, found / np.arange(1, len(hits) + 1)


# --- Queries without an answer


def threshold_at(unanswered: ArrayLike, false_rate: float) -> float:
    """Return the least score to accept, so that about `false_rate` of queries without answer are accepted.

    unanswered: the best score of each query without answer ([U])
    false_rate: expected share of further such queries whose best score reaches it (0..1, exclusive)

    It is the conformal threshold, just above the j-th largest score, j = false_rate · (U+1) rounded down: a
    further score is among the j largest of U+1 with a probability of j / (U+1). With j = 0, as for fewer than
    1 / false_rate - 1 scores, it is just above the largest, and that probability is 1 / (U+1). Raises
    ValueError for no or non-finite scores, and a rate outside (0, 1).
    """
    scores = np.sort(finite_scores(unanswered))[::-1].astype(np.float64)
    if not len(scores):
        raise ValueError("unanswered must hold at least one score")
    if not 0 < false_rate < 1:
        raise ValueError(f"false_rate must be in the open interval (0, 1), got {false_rate}")
    j = max(int(false_rate * (len(scores) + 1) + 1e-9), 1)  # against rounding, as of 0.05 * 20
    return float(np.nextafter(scores[j - 1], np.inf))


# --- Bootstrap over queries


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    queries: int,
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap confidence interval (low, high) of a statistic of Q queries.

    statistic: maps counts [Q], how often each query was drawn (sum Q), to a number; for a pooled measure
    `lambda counts: micro_average_precision(scores, correct, counts @ positives, weights=counts[query])`
    queries: Q
    level: confidence level (0..1, exclusive)
    samples: number of resamples; those with a NaN statistic are ignored

    Intervals of few queries (a dozen) are too narrow. Raises ValueError for no query, no sample, a level
    outside (0, 1), or a statistic that is always NaN.
    """
    if queries < 1 or samples < 1:
        raise ValueError(f"queries and samples must be at least 1, got {queries} and {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in the open interval (0, 1), got {level}")
    values = np.array([statistic(counts) for counts in resamples(queries, samples, seed)], dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("the statistic is NaN in every resample of the queries")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_mean(
    values: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap confidence interval (low, high) of a mean over queries.

    values: one per query ([Q]); NaN for queries without positives, which are ignored
    groups: number of what each query shows ([Q]), if groups are drawn instead of single queries

    For two systems on the same queries, `bootstrap_mean(a - b)` is the interval of the difference. Raises
    ValueError for no value, infinite values, or a level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    drawn = np.arange(known.sum()) if groups is None else np.asarray(groups)[known]
    values, (names, of_value) = values[known], np.unique(drawn, return_inverse=True)
    if not np.isfinite(values).all():
        raise ValueError("values must be finite, or NaN for queries without positives; one is infinite")
    sizes = np.bincount(of_value)
    sums = np.bincount(of_value, values)
    return bootstrap_interval(
        lambda counts: counts @ sums / (counts @ sizes), len(names), level=level, samples=samples, seed=seed
    )


def resamples(queries: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each query is drawn ([Q]), once per sample; one at a time to bound memory."""
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(generator.integers(queries, size=queries), minlength=queries)


# --- Checks of arguments


def finite_scores(scores: ArrayLike) -> np.ndarray:
    """Return the scores as an array [N]; raise ValueError for the first that is not finite."""
    scores = np.asarray(scores)
    if scores.ndim != 1:
        raise ValueError(f"scores must have one dimension, got shape {scores.shape}")
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"scores must be finite numbers: {scores[first]} at index {first} is not finite")
    return scores


def whole_numbers(values: ArrayLike, name: str) -> np.ndarray:
    """Return the values as int64 [N]; raise ValueError for other types and shapes instead of casting them."""
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be integers [N], got {values.dtype} of shape {values.shape}")
    return values.astype(np.int64)


def image_indices(values: ArrayLike, name: str, count: int) -> np.ndarray:
    """Return the values as indices of `count` images; raise ValueError for one outside 0..count-1."""
    values = whole_numbers(values, name)
    outside = values[(values < 0) | (values >= count)]
    if len(outside):
        raise ValueError(f"{name} must be indices of the {count} scores, got {outside[0]}")
    return values


def check_distinct(ascending: np.ndarray, name: str) -> None:
    repeated = ascending[1:][np.diff(ascending) == 0]
    if len(repeated):
        raise ValueError(f"{name} must be distinct, got {repeated[0]} more than once")


def sorted_ranks(ranks: ArrayLike, n_positives: int) -> np.ndarray:
    """Return the ranks in ascending order; raise ValueError unless they are possible for n_positives >= 1."""
    ranks = np.sort(whole_numbers(ranks, "ranks"))
    if n_positives < 1 or len(ranks) > n_positives:
        raise ValueError(f"n_positives must be >= 1 and >= the {len(ranks)} ranks, got {n_positives}")
    if len(ranks) and ranks[0] < 0:
        raise ValueError(f"ranks must be >= 0, got {ranks[0]}")
    check_distinct(ranks, "ranks")
    return ranks
