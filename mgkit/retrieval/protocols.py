"""The retrieval protocols: a set and one descriptor an image in, measures with their confidence intervals out (section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mgkit.data.images import evenly
from mgkit.metrics import (
    average_precision,
    bootstrap_interval,
    bootstrap_mean,
    mean_precision_recall,
    micro_average_precision,
    positive_ranks,
    precision_at,
    precision_recall_curve,
    recall_at_precision,
    ukbench_score,
)
from mgkit.retrieval.search import similarities, top_k, top_pairs

if TYPE_CHECKING:  # annotations only
    from mgkit.benchmarks.retrieval_set import RetrievalSet

MOST_PREDICTIONS = 500_000  # pairs that are pooled for micro-AP, as DISC21's own evaluation takes them
SHOWN = 6  # queries whose neighbours are kept for looking at


@dataclass(frozen=True)
class Predictions:
    """The best (query, image) pairs of a set, pooled: scores [R] falling, correct [R], query [R]: positions among the Q queries.

    n_positives [Q]: how many images answer each query, predicted or not.
    """

    scores: np.ndarray
    correct: np.ndarray
    query: np.ndarray
    n_positives: np.ndarray


@dataclass(frozen=True)
class RetrievalResult:
    """What a protocol measured on one set.

    name: the set. measure: `mAP`, `micro-AP` (0..1), `score` (0..4) or `none`. value: it; interval: its 95 % confidence
    interval by bootstrap over the queries. per_query [Q]: AP or score of each, NaN where nothing answers it. others: further
    measures by name, 0..1. recall, precision [T]: the curve, of what `curve` says. predictions: pooled over the queries. shown [S]: positions of
    queries to look at, failures first; neighbours [S,k]: what was found for them, image indices, without the query; scores [S,k].
    """

    name: str
    measure: str
    value: float
    interval: tuple[float, float]
    per_query: np.ndarray
    others: dict[str, float]
    curve: Literal["", "mean over queries", "all pairs pooled"]
    recall: np.ndarray
    precision: np.ndarray
    predictions: Predictions | None
    shown: np.ndarray
    neighbours: np.ndarray
    scores: np.ndarray


def retrieve(
    each: RetrievalSet,
    descriptors: np.ndarray,
    *,
    k: int = 10,
    show: int = SHOWN,
    bias: np.ndarray | None = None,
) -> RetrievalResult:
    """Rank the set's database for each query and measure it by the set's own protocol.

    descriptors: L2-normalised, [N,D], one for each of the set's images. k: neighbours kept for each of `show` queries. bias
    [Q]: what is taken off every score of a query (see `score_bias`). A query never ranks itself, but UKBench's score counts it as
    found first; junk is taken out of the ranking; equal scores go against the answers. Raises ValueError for descriptors that
    do not fit, or where no query has an answer.
    """
    check_fit(each, descriptors)
    if k < 1 or show < 1:
        raise ValueError(f"k and show must be at least 1, got {k} and {show}")
    if each.measure == "none":
        return without_truth(each, descriptors, k, show)
    predictions = pool(each, descriptors, bias)
    if each.measure == "micro-AP":
        per_query = predicted_precision(predictions)
        ranks = []
    else:
        ranks = answer_ranks(each, descriptors)
        per_query = measure_queries(each, ranks)
    value, interval = overall(each.measure, per_query, predictions)
    others = further_measures(each, ranks, predictions)
    curve, (recall, precision) = precision_recall(ranks, predictions)
    shown = failures_first(per_query, show)
    neighbours, scores = nearest(each, descriptors, each.queries[shown], k)
    return RetrievalResult(
        each.name, each.measure, value, interval, per_query, others, curve, recall, precision, predictions, shown,
        neighbours, scores,
    )  # fmt: skip


def measured_value(each: RetrievalSet, descriptors: np.ndarray) -> float:
    """The set's measure alone, as `retrieve` gives it, without intervals, curves and neighbours."""
    check_fit(each, descriptors)
    if each.measure == "micro-AP":
        return micro_ap(pool(each, descriptors, None))
    return float(np.nanmean(measure_queries(each, answer_ranks(each, descriptors))))


def check_fit(each: RetrievalSet, descriptors: np.ndarray) -> None:
    """Raise ValueError unless there is a descriptor for each image, and a query to measure."""
    if len(descriptors) != len(each.images):
        raise ValueError(f"{len(descriptors)} descriptors for the {len(each.images)} images of {each.name}")
    if not len(each.queries) or (each.measure != "none" and not any(map(len, each.positives))):
        raise ValueError(f"{each.name}: no query is left that has a positive")


def rows_of(descriptors: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The rows of those indices; no copy where they stand in one run, as a database mostly does."""
    if len(indices) and (np.diff(indices) == 1).all():
        return descriptors[indices[0] : indices[-1] + 1]
    return descriptors[indices]


def answer_ranks(each: RetrievalSet, descriptors: np.ndarray) -> list[np.ndarray]:
    """For each query the 0-based ranks of its answers, itself and its junk taken out of the ranking."""
    place = np.full(len(each.images), -1)  # image -> row of the database
    place[each.database] = np.arange(len(each.database))
    ranks = []
    for block, scores in similarities(
        rows_of(descriptors, each.queries), rows_of(descriptors, each.database)
    ):
        for q, row in zip(range(block.start, block.stop), scores, strict=True):
            dropped = np.append(each.junk[q], each.queries[q]) if each.junk else each.queries[q : q + 1]
            dropped = place[dropped]
            ranks.append(positive_ranks(row, place[each.positives[q]], junk=dropped[dropped >= 0]))
    return ranks


def measure_queries(each: RetrievalSet, ranks: list[np.ndarray]) -> np.ndarray:
    """Average precision or UKBench score of each query from the ranks of its answers, [Q]; NaN for a query without any."""
    if each.measure == "score":  # the query itself comes first
        return np.array([ukbench_score([np.concatenate([[0], of_query + 1])]) for of_query in ranks])
    return np.array([average_precision(r, len(r)) if len(r) else np.nan for r in ranks])


def pool(each: RetrievalSet, descriptors: np.ndarray, bias: np.ndarray | None) -> Predictions:
    """The best pairs of all queries with the whole database; neither a query with itself nor with its junk.

    Where more than MOST_PREDICTIONS are left, none of those that tie with the first one too many counts: which of them came
    first would be chance.
    """
    junk = sum(map(len, each.junk))
    scores, query, row = top_pairs(
        rows_of(descriptors, each.queries), rows_of(descriptors, each.database),
        count=MOST_PREDICTIONS + len(each.queries) + junk + 1, bias=bias,
    )  # fmt: skip
    image = each.database[row]
    counts = image != each.queries[query]
    if junk:
        counts &= ~np.isin(pair_keys(each, query, image), keys_of(each, each.junk))
    scores, query, image = (column[counts] for column in (scores, query, image))
    if len(scores) > MOST_PREDICTIONS:
        within = scores > scores[MOST_PREDICTIONS]
        scores, query, image = (column[within] for column in (scores, query, image))
    correct = np.isin(pair_keys(each, query, image), keys_of(each, each.positives))
    return Predictions(scores, correct, query, np.array([len(positives) for positives in each.positives]))


def pair_keys(each: RetrievalSet, query: np.ndarray, image: np.ndarray) -> np.ndarray:
    """One number for each pair of a query's position and an image."""
    return query.astype(np.int64) * len(each.images) + image


def keys_of(each: RetrievalSet, lists: tuple[np.ndarray, ...]) -> np.ndarray:
    """`pair_keys` of every query with the images of its list."""
    query = np.repeat(np.arange(len(lists)), [len(images) for images in lists])
    return pair_keys(each, query, np.concatenate([*lists, np.array([], dtype=np.int64)]))


def predicted_precision(predictions: Predictions) -> np.ndarray:
    """Average precision of each query within its own predictions, rectangle rule, [Q]; NaN for a query without answers."""
    values = np.full(len(predictions.n_positives), np.nan)
    values[predictions.n_positives > 0] = 0.0
    order = np.argsort(predictions.query, kind="stable")
    starts = np.searchsorted(predictions.query[order], np.arange(len(values) + 1))
    for q in np.flatnonzero(predictions.n_positives):
        of_query = order[starts[q] : starts[q + 1]]
        correct = predictions.correct[of_query]
        if correct.any():
            ranks = positive_ranks(predictions.scores[of_query], np.flatnonzero(correct))
            values[q] = average_precision(ranks, int(predictions.n_positives[q]), rule="rectangle")
    return values


def micro_ap(predictions: Predictions, counts: np.ndarray | None = None) -> float:
    """micro-AP of pooled predictions; counts [Q]: how often each query counts (NaN where none of these has an answer)."""
    counts = np.ones(len(predictions.n_positives), dtype=np.int64) if counts is None else counts
    return micro_average_precision(
        predictions.scores,
        predictions.correct,
        int(counts @ predictions.n_positives),
        weights=counts[predictions.query],
    )


def overall(
    measure: str, per_query: np.ndarray, predictions: Predictions
) -> tuple[float, tuple[float, float]]:
    """The set's measure and its confidence interval."""
    if measure == "micro-AP":
        interval = bootstrap_interval(
            lambda counts: micro_ap(predictions, counts), len(per_query), samples=200
        )
        return micro_ap(predictions), interval
    return float(np.nanmean(per_query)), bootstrap_mean(per_query)


def further_measures(
    each: RetrievalSet, ranks: list[np.ndarray], predictions: Predictions
) -> dict[str, float]:
    """Measures by name, 0..1, beside the set's own."""
    scores, correct, total = predictions.scores, predictions.correct, int(predictions.n_positives.sum())
    pooled = {"recall at precision 90 %": recall_at_precision(scores, correct, total)}
    if each.measure == "micro-AP":
        return pooled
    answered = [r for r in ranks if len(r)]
    means = {f"mP@{k}": float(np.mean([precision_at(r, k) for r in answered])) for k in (1, 5, 10)}
    return means | {"micro-AP": micro_ap(predictions)} | pooled


def precision_recall(
    ranks: list[np.ndarray], predictions: Predictions
) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    """The curve (recall, precision), and what it is of: the mean over queries, or all pairs pooled.

    Where no query has two answers, each by itself has no curve.
    """
    if predictions.n_positives.max() > 1 and ranks:
        answered = [r for r in ranks if len(r)]
        return "mean over queries", mean_precision_recall(answered, [len(r) for r in answered])
    total = int(predictions.n_positives.sum())
    return "all pairs pooled", precision_recall_curve(predictions.scores, predictions.correct, total)


@dataclass(frozen=True)
class Difference:
    """after - before in the set's measure, with its 95 % confidence interval by bootstrap over the same queries."""

    value: float
    low: float
    high: float

    @property
    def better(self) -> bool | None:
        """Whether `after` is better or worse; None where the interval holds zero, and these queries do not say."""
        return True if self.low > 0 else False if self.high < 0 else None


def difference(before: RetrievalResult, after: RetrievalResult) -> Difference:
    """How two kinds of descriptor differ on the same queries of one set. Raises ValueError for two sets."""
    if (before.name, len(before.per_query)) != (after.name, len(after.per_query)):
        raise ValueError(f"{before.name} and {after.name} are two sets, or have different queries")
    if before.measure == "micro-AP":
        low, high = bootstrap_interval(
            lambda counts: micro_ap(after.predictions, counts) - micro_ap(before.predictions, counts),
            len(before.per_query),
            samples=200,
        )
    else:
        low, high = bootstrap_mean(after.per_query - before.per_query)
    return Difference(after.value - before.value, low, high)


def score_bias(
    each: RetrievalSet, descriptors: np.ndarray, *, factor: float = 2.0, rank: int = 10
) -> np.ndarray:
    """What score normalisation takes off the scores of each query, [Q]: factor × its rank-th best similarity to the background.

    With it one threshold suits all queries (DISC21: 2.0 and 10). A background of fewer images is taken to its last. Raises
    ValueError where there is none.
    """
    if not len(each.background):
        raise ValueError(f"{each.name}: there is no background image to normalise scores by")
    background = rows_of(descriptors, each.background)
    scores, _ = top_k(rows_of(descriptors, each.queries), background, k=min(rank, len(background)))
    return factor * scores[:, -1]


def nearest(
    each: RetrievalSet, descriptors: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(neighbours, scores), [S,k] each: what the database holds nearest to the images `queries` [S], themselves left out."""
    wanted = min(k + 1, len(each.database))  # one more, for the query itself
    scores, rows = top_k(descriptors[queries], rows_of(descriptors, each.database), k=wanted)
    neighbours = each.database[rows]
    others = neighbours != queries[:, None]
    shown = min(k, int(others.sum(1).min()))
    kept = np.stack([np.flatnonzero(row)[:shown] for row in others])
    return np.take_along_axis(neighbours, kept, 1), np.take_along_axis(scores, kept, 1)


def without_truth(each: RetrievalSet, descriptors: np.ndarray, k: int, show: int) -> RetrievalResult:
    """Neighbours of some queries, spread over the set, where nothing says what is right."""
    unknown, empty = np.full(len(each.queries), np.nan), np.array([])
    shown = evenly(len(each.queries), show)
    neighbours, scores = nearest(each, descriptors, each.queries[shown], k)
    return RetrievalResult(
        each.name, each.measure, np.nan, (np.nan, np.nan), unknown, {}, "", empty, empty, None, shown, neighbours, scores
    )  # fmt: skip


def failures_first(per_query: np.ndarray, count: int) -> np.ndarray:
    """The positions of `count` queries, half the worst and half spread over the rest, by rising measure; NaN left out."""
    order = np.argsort(per_query, kind="stable")[: np.isfinite(per_query).sum()]
    worst = order[: (count + 1) // 2]
    rest = order[len(worst) :]
    spread = np.linspace(0, max(len(rest) - 1, 0), min(count - len(worst), len(rest))).astype(int)
    return np.concatenate([worst, rest[spread]])


# --- As text


def shown_difference(measure: str, gain: Difference) -> str:
    """A gain with its interval, in points of per cent or of the score."""
    scale, digits = (1, 2) if measure == "score" else (100, 1)
    value, low, high = (f"{scale * x:+.{digits}f}" for x in (gain.value, gain.low, gain.high))
    return f"{value} ({low} … {high})"


def shown(result: RetrievalResult) -> str:
    """The value as tables print it: mAP in per cent, UKBench's score out of 4."""
    return shown_value(result.measure, result.value)


def shown_value(measure: str, value: float) -> str:
    """A mAP in per cent, a score out of 4, or that nothing was measured."""
    if measure == "none":
        return "not measured: no ground truth"
    return f"{value:.2f} of 4" if measure == "score" else f"{100 * value:.1f} %"


def shown_query(measure: str, value: float) -> str:
    """Of one query: its average precision, or its score."""
    return f"{'score' if measure == 'score' else 'AP'} {shown_value(measure, value)}"


def shown_interval(measure: str, low: float, high: float) -> str:
    """A confidence interval in the unit of the measure."""
    scale, digits = (1, 2) if measure == "score" else (100, 1)
    return f"{scale * low:.{digits}f} … {scale * high:.{digits}f}"
