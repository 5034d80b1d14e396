"""Accuracy and retrieval measures, and how sure they are: arrays in, numbers out.

Equal scores always count against us: whatever is wrong stands before whatever is right. So no measure depends on the order of
its input, and none is raised by ties.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
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


# One query: its scores -> the ranks of its positives -> a number


def positive_ranks(scores: ArrayLike, positives: ArrayLike, *, junk: ArrayLike = ()) -> np.ndarray:
    """0-based ranks of the positives in the ranking by falling score, ascending, [P].

    scores [N]: similarity of each image, the query left out. positives [P]: their indices. junk: indices of images that are
    neither right nor wrong; they leave the ranking before ranks are counted (revisited Oxford/Paris). Ties go against the
    positives. Raises ValueError for scores that are not finite, indices outside 0..N-1, a positive that is repeated or junk.
    """
    scores = finite_scores(scores)
    positives = image_indices(positives, "positives", len(scores))
    junk = image_indices(junk, "junk", len(scores))
    check_distinct(np.sort(positives), "positives")
    if np.isin(positives, junk).any():
        raise ValueError(
            f"image {np.intersect1d(positives, junk)[0]} is in both positives and junk, it can be one only"
        )
    if not len(positives):
        return positives
    own = np.sort(scores[positives])  # [P], rising
    rival = scores >= own[0]  # [N]: what is below the lowest positive is before none, so most need no sorting
    rival[positives] = False
    rival[junk] = False
    rivals = np.sort(scores[rival])
    above = len(rivals) - np.searchsorted(rivals, own, side="left")  # [P], those that score as high or higher
    return above[::-1] + np.arange(len(own))


def average_precision(
    ranks: ArrayLike, n_positives: int, *, rule: Literal["trapezoid", "rectangle"] = "trapezoid"
) -> float:
    """Area under precision-recall of one query, in 0..1.

    ranks: 0-based ranks of the positives that were found, in any order, neither query nor junk counted. n_positives: how many
    there are, found or not. rule: `trapezoid` averages the precision before and at each positive (Holidays, Copydays, revisited
    Oxford/Paris); `rectangle` takes that at the positive (trec_eval, micro-AP). Raises ValueError for n_positives < 1, or more or
    repeated or negative ranks.
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


def precision_at(ranks: ArrayLike, k: int) -> float:
    """Share of positives among the first k images, in 0..1; its mean over the queries is mP@k (revisited Oxford/Paris).

    ranks: 0-based ranks of all positives of the query, junk left out. Behind the last positive nothing more could be right,
    so where it is among the first k, the share is that among the images up to it. Raises ValueError for k < 1 and no ranks: a
    query without positives is left out of mP@k.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not np.size(ranks):
        raise ValueError("ranks must hold at least one rank: leave out queries without positives")
    ranks = sorted_ranks(ranks, np.size(ranks))
    cut = min(k, int(ranks[-1]) + 1)
    return float((ranks < cut).sum() / cut)


def ukbench_score(ranks: Sequence[Sequence[int]]) -> float:
    """Mean number of each query's object among its first four, the query itself included: best 4.0.

    ranks: for each query the 0-based ranks of its object's four images. Raises ValueError for no query.
    """
    if not len(ranks):
        raise ValueError("ukbench_score needs at least one query")
    return float(np.mean([np.sum(np.asarray(of_query) < 4) for of_query in ranks]))


def mean_precision_recall(
    ranks_per_query: Sequence[ArrayLike], n_positives_per_query: Sequence[int], points: int = 101
) -> tuple[np.ndarray, np.ndarray]:
    """The curve behind a mAP: recall [points], evenly from 0 to 1, and the mean over the queries of the precision there [points].

    A query's precision at a recall is the highest that it has at this recall or beyond, and 0 past the recall that it reaches.
    ranks_per_query and n_positives_per_query: as for `average_precision`; queries with 0 positives are left out. Raises
    ValueError for no query with positives, unequal lengths, fewer than 2 points.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    if len(ranks_per_query) != len(n_positives_per_query):
        raise ValueError(
            f"ranks of {len(ranks_per_query)} queries but n_positives of {len(n_positives_per_query)}, they must be as many"
        )
    curves = []
    step = np.arange(points)
    for ranks, n_positives in zip(ranks_per_query, n_positives_per_query, strict=True):
        if n_positives == 0 and not np.size(ranks):
            continue
        ranks = sorted_ranks(ranks, n_positives)
        best = np.zeros(n_positives)  # by number of positives found, less 1
        best[: len(ranks)] = np.arange(1, len(ranks) + 1) / (ranks + 1)
        best = np.maximum.accumulate(best[::-1])[::-1]
        # Positives that make this recall, rounded up; in whole numbers, since 0.07 * 100 is above 7 in floats.
        needed = -(-step * n_positives // (points - 1))
        curves.append(best[np.maximum(needed, 1) - 1])
    if not curves:
        raise ValueError("mean_precision_recall needs at least one query with positives")
    return step / (points - 1), np.mean(curves, axis=0)


# All queries pooled: one ranking of all their predictions


def micro_average_precision(
    scores: ArrayLike, correct: ArrayLike, n_positives: int, *, weights: ArrayLike | None = None
) -> float:
    """Average precision of the predictions of all queries in one ranking, by the rectangle rule, in 0..1 (DISC21, ISC2021).

    scores [R], correct [R] bool: of every predicted pair of query and image. n_positives: pairs in the ground truth, predicted or
    not. weights [R]: how often each prediction counts, as if it were there so many times; n_positives is then the weighted number.
    NaN where n_positives is 0. Raises ValueError for scores that are not finite, unequal lengths, weights that are not whole
    numbers >= 0, more correct predictions than n_positives.
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
    """The highest recall at which the pooled predictions have at least this precision, in 0..1; 0 if they never do (ISC2021).

    Every position in the ranking is an operating point, also among equal scores, as in the official evaluation. Arguments, NaN
    and errors: as for `micro_average_precision`; ValueError for precision outside 0..1 too.
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
    """(recall, precision) [R] each: after every position in the ranking of the pooled predictions.

    Arguments and errors: as for `micro_average_precision`; ValueError for n_positives 0 too.
    """
    hits = pooled_hits(scores, correct, n_positives, None)
    if not n_positives:
        raise ValueError("n_positives must be at least 1: without positives there is no recall")
    found, precision = found_and_precision(hits)
    return found / n_positives, precision


def pooled_hits(
    scores: ArrayLike, correct: ArrayLike, n_positives: int, weights: ArrayLike | None
) -> np.ndarray:
    """Whether the prediction at each position is correct, [W] bool, W the sum of the weights.

    Falling scores, the incorrect first among equals; a prediction of weight w stands there w times.
    """
    scores, correct = finite_scores(scores), np.asarray(correct)
    if correct.dtype != bool or correct.shape != scores.shape:
        raise ValueError(
            f"correct must be bool {list(scores.shape)} as the scores, got {correct.dtype} {list(correct.shape)}"
        )
    order = np.lexsort((~correct, scores))[::-1]
    hits = correct[order]
    if weights is not None:
        weights = whole_numbers(weights, "weights")
        if weights.shape != scores.shape or (weights < 0).any():
            raise ValueError(f"weights must be {len(scores)} numbers >= 0, one for each of the scores")
        hits = np.repeat(hits, weights[order])
    if n_positives < hits.sum():
        raise ValueError(
            f"n_positives must be no less than the {hits.sum()} correct predictions, got {n_positives}"
        )
    return hits


def found_and_precision(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many were correct, and what share, after each position; [W] each."""
    found = np.cumsum(hits)
    return found, found / np.arange(1, len(hits) + 1)


# How sure a figure is: bootstrap over queries


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    queries: int,
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high): between these lies the share `level` of a statistic's values when Q queries are drawn anew with replacement.

    statistic: takes counts [Q], how often each query was drawn (they add up to Q), and returns a number; for a pooled measure
    `lambda counts: micro_average_precision(scores, correct, counts @ positives, weights=counts[query])`. Resamples where it is NaN
    are left out. Percentile intervals of few queries (a dozen) are too narrow. Raises ValueError for no query, no sample, level
    outside (0, 1), a statistic that is always NaN.
    """
    if queries < 1 or samples < 1:
        raise ValueError(f"a bootstrap needs at least 1 query and 1 sample, got {queries} and {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, both excluded, got {level}")
    values = np.array([statistic(counts) for counts in resamples(queries, samples, seed)], dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("the statistic is NaN in every resample of the queries")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_mean(
    values: ArrayLike, *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """(low, high) by `bootstrap_interval` for the mean of a value a query, [Q]; NaN, a query without positives, is left out.

    Two systems on the same queries: `bootstrap_mean(a - b)` is the interval of the difference. Raises ValueError for no value,
    infinite ones, level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not np.isfinite(values).all():
        raise ValueError("values must be finite, or NaN for a query without positives; one is infinite")
    return bootstrap_interval(
        lambda counts: counts @ values / len(values), len(values), level=level, samples=samples, seed=seed
    )


def resamples(queries: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each query is drawn, [Q], once a sample; one at a time, since all of DISC's would fill the memory."""
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(generator.integers(queries, size=queries), minlength=queries)


# What the arguments must be


def finite_scores(scores: ArrayLike) -> np.ndarray:
    """scores as an array [N]; ValueError names the first that is not finite."""
    scores = np.asarray(scores)
    if scores.ndim != 1:
        raise ValueError(f"scores must have one dimension, got shape {scores.shape}")
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"scores must be finite numbers: {scores[first]} at index {first} is not finite")
    return scores


def whole_numbers(values: ArrayLike, name: str) -> np.ndarray:
    """values as int64 [N]; ValueError for anything that is not a row of integers.

    Casting alone would turn floats and masks into wrong ones.
    """
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a row of integers, got {values.dtype} of shape {values.shape}")
    return values.astype(np.int64)


def image_indices(values: ArrayLike, name: str, count: int) -> np.ndarray:
    """values as indices of `count` images; ValueError for one outside."""
    values = whole_numbers(values, name)
    outside = values[(values < 0) | (values >= count)]
    if len(outside):
        raise ValueError(f"{name} must be indices of the {count} scores, got {outside[0]}")
    return values


def check_distinct(rising: np.ndarray, name: str) -> None:
    repeated = rising[1:][np.diff(rising) == 0]
    if len(repeated):
        raise ValueError(f"{name} must be distinct, got {repeated[0]} more than once")


def sorted_ranks(ranks: ArrayLike, n_positives: int) -> np.ndarray:
    """ranks, rising; ValueError unless they can be those of positives of which there are n_positives >= 1."""
    ranks = np.sort(whole_numbers(ranks, "ranks"))
    if n_positives < 1 or len(ranks) > n_positives:
        raise ValueError(
            f"n_positives must be at least 1 and no less than the {len(ranks)} ranks, got {n_positives}"
        )
    if len(ranks) and ranks[0] < 0:
        raise ValueError(f"ranks must be >= 0, got {ranks[0]}")
    check_distinct(ranks, "ranks")
    return ranks
