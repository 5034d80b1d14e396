"""Retrieval protocols: measures of a retrieval set, with confidence intervals (section 4.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mgkit.data.images import evenly
from mgkit.features import rows_at
from mgkit.machine.timing import timed
from mgkit.metrics import (
    average_precision,
    average_precision_at,
    bootstrap_interval,
    bootstrap_mean,
    mean_precision_recall,
    micro_average_precision,
    positive_ranks,
    precision_at,
    precision_recall_curve,
    recall_at,
    recall_at_precision,
    ukbench_score,
)
from mgkit.retrieval.ranking import InnerProducts, Ranking
from mgkit.retrieval.rejection import Rejection, rejection
from mgkit.retrieval.search import top_k

if TYPE_CHECKING:  # annotations only
    from mgkit.benchmarks.retrieval_set import RetrievalSet

MOST_PREDICTIONS = 500_000  # pairs pooled for micro-AP, as in DISC21's own evaluation
FALSE_RATE = 0.05  # of queries without answer that are accepted
RECALLED = 10  # images, of the mAP@k and for the median rank of sets with Recall@k
SHOWN = 7  # queries whose neighbours are kept for display; odd, for the median is one of them


@dataclass(frozen=True)
class Predictions:
    """The best pairs of query and image in a set, pooled over the queries.

    scores: descending ([R])
    correct: whether the image is a positive of the query ([R], bool)
    query: position among the Q queries ([R])
    n_positives: number of positives of each query, predicted or not ([Q])
    """

    scores: np.ndarray
    correct: np.ndarray
    query: np.ndarray
    n_positives: np.ndarray


@dataclass(frozen=True)
class RetrievalResult:
    """Result of a protocol on one set.

    name: of the set
    measure, value: `mAP`, `mAP@<k>`, `Recall@1`, `micro-AP` (0..1), `score` (0..4) or `none`
    interval: 95 % confidence interval of value, by bootstrap over queries, or over what they show
    per_query: AP, score, or whether the first image is right; NaN without positives ([Q])
    others: further measures by name (0..1; `median rank` is that of the first positive, from 1)
    curve: what the curve below is of
    recall, precision: its points ([T])
    predictions: pooled over queries
    shown: positions of queries to display, from the worst to the best, then some to be rejected ([S])
    neighbours, scores: image indices found for these, without the query, and their similarities ([S,k])
    rejection: of queries without positives; None if there are none to reject
    groups: number of what each query shows ([Q]); None if each is drawn alone for intervals
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
    rejection: Rejection | None = None
    groups: np.ndarray | None = None


@timed("search")
def retrieve(
    dataset: RetrievalSet,
    descriptors: np.ndarray,
    *,
    k: int = 10,
    show: int = SHOWN,
    bias: np.ndarray | None = None,
    ranking: Ranking | None = None,
    false_rate: float = FALSE_RATE,
) -> RetrievalResult:
    """Rank the database for each query and evaluate the set by its protocol (section 4.3).

    dataset: the retrieval set
    descriptors: L2-normalised, one per image of the set ([N,D])
    k: number of neighbours kept for each of `show` queries
    bias: subtracted from all scores of a query ([Q], see `score_bias`)
    ranking: of the database for the queries, after query expansion or re-ranking; None: by the descriptors
    false_rate: share of queries without answer to accept; rejection is measured for ranking by descriptors
    The query is removed from its ranking, but counts as the first result in UKBench's score; junk is removed;
    positives lose ties. Raises ValueError for descriptors that do not fit, or no query with positives.
    """
    check_fit(dataset, descriptors)
    if k < 1 or show < 1:
        raise ValueError(f"k and show must be at least 1, got {k} and {show}")
    plain = bias is None and ranking is None
    ranking = ranking or by_descriptors(dataset, descriptors)
    if dataset.measure == "none":
        return without_ground_truth(dataset, ranking, k, show)
    predictions = pool(dataset, ranking, bias)
    if dataset.measure == "micro-AP":
        ranks, per_query = [], predicted_precision(predictions)
    else:
        ranks = answer_ranks(dataset, ranking)
        per_query = measure_queries(dataset, ranks)
    value, interval = measure_set(dataset, per_query, predictions)
    others = further_measures(dataset, ranks or nearest_ranks(dataset, ranking), predictions)
    curve, (recall, precision) = precision_recall(ranks, predictions)
    unanswered = rejected(dataset, ranking, false_rate) if plain else None
    shown = worst_to_best(per_query, show)
    if unanswered:
        shown = np.append(shown, unanswered.most_to_least_alike(show))
    neighbours, scores = nearest(dataset, ranking, shown, k)
    return RetrievalResult(
        dataset.name, measure_name(dataset), value, interval, per_query, others,
        curve, recall, precision, predictions, shown, neighbours, scores, unanswered, dataset.query_groups,
    )  # fmt: skip


@timed("search")
def measured_value(dataset: RetrievalSet, descriptors: np.ndarray) -> float:
    """Return the value of `retrieve` alone, without intervals, curves and neighbours."""
    check_fit(dataset, descriptors)
    ranking = by_descriptors(dataset, descriptors)
    if dataset.measure == "micro-AP":
        return micro_ap(pool(dataset, ranking, None))
    return float(np.nanmean(measure_queries(dataset, answer_ranks(dataset, ranking))))


def measure_name(dataset: RetrievalSet) -> str:
    """Return the name of the set's measure, with the number of images that it counts."""
    return f"mAP@{dataset.cutoff}" if dataset.measure == "mAP@k" else dataset.measure


def by_descriptors(dataset: RetrievalSet, descriptors: np.ndarray) -> InnerProducts:
    """Return the ranking of a set's database by the descriptors of its images [N,D]."""
    return InnerProducts(rows_at(descriptors, dataset.queries), rows_at(descriptors, dataset.database))


def check_fit(dataset: RetrievalSet, descriptors: np.ndarray) -> None:
    """Raise ValueError unless there is one descriptor per image, and a query with positives."""
    if len(descriptors) != len(dataset.images):
        raise ValueError(f"{len(descriptors)} descriptors for {len(dataset.images)} images of {dataset.name}")
    if not len(dataset.queries) or (dataset.measure != "none" and not any(map(len, dataset.positives))):
        raise ValueError(f"{dataset.name}: no query with positives is left")


def answer_ranks(dataset: RetrievalSet, ranking: Ranking) -> list[np.ndarray]:
    """Return the 0-based ranks of each query's positives, without the query and its junk."""
    place, ranks = rows_by_image(dataset), []
    for block, scores in ranking.blocks():
        for q, row in zip(range(block.start, block.stop), scores, strict=True):
            junk = dataset.junk[q] if dataset.junk else dataset.queries[:0]
            dropped = place[np.append(junk, dataset.queries[q])]
            ranks.append(positive_ranks(row, place[dataset.positives[q]], junk=dropped[dropped >= 0]))
    return ranks


def rows_by_image(dataset: RetrievalSet) -> np.ndarray:
    """Return the row of each image in the database, [N]; -1 for images that are not in it."""
    rows = np.full(len(dataset.images), -1)
    rows[dataset.database] = np.arange(len(dataset.database))
    return rows


def measure_queries(dataset: RetrievalSet, ranks: list[np.ndarray]) -> np.ndarray:
    """Return the set's measure of each query, [Q]; NaN without positives."""
    if dataset.measure == "score":  # the query itself is first
        return np.array([ukbench_score([np.concatenate([[0], of_query + 1])]) for of_query in ranks])
    measure_of = {
        "mAP": lambda r: average_precision(r, len(r)),
        "mAP@k": lambda r: average_precision_at(r, len(r), dataset.cutoff),
        "Recall@1": lambda r: recall_at(r[:1], 1),
    }[dataset.measure]
    return np.array([measure_of(r) if len(r) else np.nan for r in ranks])


def nearest_ranks(dataset: RetrievalSet, ranking: Ranking) -> list[np.ndarray]:
    """Return the rank of the first positive of each query, if it is small enough for the set's Recall@k, [Q].

    For sets whose ranks are not all computed. Other ranks are the size of the database; empty without
    positives.
    """
    if not dataset.recalls:
        return []
    count, place, ranks = len(dataset.database), rows_by_image(dataset), []
    wanted = min(max(dataset.recalls) + 1 + max(map(len, dataset.junk), default=0), count)
    scores, rows = ranking.nearest(np.arange(len(dataset.queries)), wanted)
    for q, (of_query, found) in enumerate(zip(scores, rows, strict=True)):
        positives = place[dataset.positives[q]]
        junk = dataset.junk[q] if dataset.junk else dataset.queries[:0]
        right = np.isin(found, positives)
        wrong = ~right & ~np.isin(found, place[np.append(junk, dataset.queries[q])])
        best = of_query[right].max(initial=-np.inf)
        # Wrong images with the same score rank before; some may be among those that were not asked for.
        known = right.any() and (wanted == count or of_query[-1] < best)
        rank = int((wrong & (of_query >= best)).sum()) if known else count
        ranks.append(np.array([rank][: len(positives)]))
    return ranks


def rejected(dataset: RetrievalSet, ranking: InnerProducts, false_rate: float) -> Rejection | None:
    """Return how queries without positives are told from the others; None if there are none to reject."""
    answered = np.array([len(positives) > 0 for positives in dataset.positives])
    if dataset.query_groups is None or answered.all():
        return None
    wanted = min(2, len(dataset.database))  # one of them may be the query itself
    scores, rows = ranking.nearest(np.arange(len(dataset.queries)), wanted)
    images = dataset.database[rows]  # [Q,wanted]
    if (images[:, -1] == dataset.queries).any() and wanted == 1:
        return None  # it has no other image to be compared with
    first = (images[:, 0] == dataset.queries).astype(int)[:, None]
    best, image = (np.take_along_axis(column, first, 1)[:, 0] for column in (scores, images))
    right = np.array([i in positives for i, positives in zip(image, dataset.positives, strict=True)])
    return rejection(best, right, answered, dataset.query_groups, false_rate=false_rate)


def pool(dataset: RetrievalSet, ranking: Ranking, bias: np.ndarray | None) -> Predictions:
    """Return the best pairs of all queries and the database, without the query itself and junk.

    Beyond MOST_PREDICTIONS, ties with the first pair left out are left out as well, since their order is
    arbitrary.
    """
    junk = sum(map(len, dataset.junk))
    scores, query, row = ranking.pairs(MOST_PREDICTIONS + len(dataset.queries) + junk + 1, bias)
    image = dataset.database[row]
    kept = image != dataset.queries[query]
    if junk:
        kept &= ~np.isin(pair_keys(dataset, query, image), keys_of(dataset, dataset.junk))
    scores, query, image = (column[kept] for column in (scores, query, image))
    if len(scores) > MOST_PREDICTIONS:
        within = scores > scores[MOST_PREDICTIONS]
        scores, query, image = (column[within] for column in (scores, query, image))
    correct = np.isin(pair_keys(dataset, query, image), keys_of(dataset, dataset.positives))
    return Predictions(scores, correct, query, np.array([len(positives) for positives in dataset.positives]))


def pair_keys(dataset: RetrievalSet, query: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return one integer per pair of query position and image."""
    return query.astype(np.int64) * len(dataset.images) + image


def keys_of(dataset: RetrievalSet, lists: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return `pair_keys` of each query and the images of its list."""
    query = np.repeat(np.arange(len(lists)), [len(images) for images in lists])
    return pair_keys(dataset, query, np.concatenate([*lists, np.array([], dtype=np.int64)]))


def predicted_precision(predictions: Predictions) -> np.ndarray:
    """Return the average precision of each query's predictions, by the rectangle rule, [Q]."""
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
    """Return the micro-AP of predictions; counts [Q]: weight of each query. NaN without positives."""
    counts = np.ones(len(predictions.n_positives), dtype=np.int64) if counts is None else counts
    total, weights = int(counts @ predictions.n_positives), counts[predictions.query]
    return micro_average_precision(predictions.scores, predictions.correct, total, weights=weights)


def measure_set(
    dataset: RetrievalSet, per_query: np.ndarray, predictions: Predictions
) -> tuple[float, tuple[float, float]]:
    """Return the set's measure and its confidence interval, over what the queries show if that is known."""
    if dataset.measure != "micro-AP":
        return float(np.nanmean(per_query)), bootstrap_mean(per_query, groups=dataset.query_groups)
    interval = bootstrap_interval(lambda counts: micro_ap(predictions, counts), len(per_query), samples=200)
    return micro_ap(predictions), interval


def further_measures(
    dataset: RetrievalSet, ranks: list[np.ndarray], predictions: Predictions
) -> dict[str, float]:
    """Return measures besides the set's own, by name (0..1; the median rank of the first positive from 1).

    ranks: of the positives of each query; for micro-AP at least of the first one, if it has Recall@k
    """
    scores, correct, total = predictions.scores, predictions.correct, int(predictions.n_positives.sum())
    pooled = {"recall at precision 90 %": recall_at_precision(scores, correct, total)}
    answered = [r for r in ranks if len(r)]
    first = [int(r.min()) for r in answered]
    recalls = {f"Recall@{k}": recall_at(first, k) for k in dataset.recalls}
    if dataset.measure == "micro-AP":
        return recalls | pooled
    if dataset.recalls and dataset.measure == "mAP":
        at = [average_precision_at(r, len(r), RECALLED) for r in answered]
        recalls |= {f"mAP@{RECALLED}": float(np.mean(at)), "median rank": float(np.median(first) + 1)}
    if dataset.measure == "Recall@1":
        return recalls | {"mAP": float(np.mean([average_precision(r, len(r)) for r in answered]))}
    means = {f"mP@{k}": float(np.mean([precision_at(r, k) for r in answered])) for k in (1, 5, 10)}
    return recalls | means | {"micro-AP": micro_ap(predictions)} | pooled


def precision_recall(
    ranks: list[np.ndarray], predictions: Predictions
) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    """Return what the curve is of, and (recall, precision).

    A curve averaged over queries needs queries with several positives; else all pairs are pooled.
    """
    if predictions.n_positives.max() > 1 and ranks:
        answered = [r for r in ranks if len(r)]
        return "mean over queries", mean_precision_recall(answered, [len(r) for r in answered])
    total = int(predictions.n_positives.sum())
    return "all pairs pooled", precision_recall_curve(predictions.scores, predictions.correct, total)


@dataclass(frozen=True)
class Difference:
    """Difference after - before of a measure, with its 95 % bootstrap interval over queries or images."""

    value: float
    low: float
    high: float

    @property
    def better(self) -> bool | None:
        """Whether `after` is better; None if the interval contains zero."""
        return True if self.low > 0 else False if self.high < 0 else None


def difference(before: RetrievalResult, after: RetrievalResult) -> Difference:
    """Compare two kinds of descriptor on the same queries of one set; raise ValueError for different sets."""
    if (before.name, len(before.per_query)) != (after.name, len(after.per_query)):
        raise ValueError(f"{before.name} and {after.name} must be one set with the same queries")
    if before.measure == "micro-AP":
        low, high = bootstrap_interval(
            lambda counts: micro_ap(after.predictions, counts) - micro_ap(before.predictions, counts),
            len(before.per_query),
            samples=200,
        )
    else:
        low, high = bootstrap_mean(after.per_query - before.per_query, groups=before.groups)
    return Difference(after.value - before.value, low, high)


def accuracy_difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """Compare the accuracy of two classifiers on the same images, by a paired bootstrap over the images.

    before, after: 1 for an image that is right, 0 for another, NaN for one that was not read ([N])
    """
    changes = np.asarray(after, dtype=np.float64) - before
    return Difference(float(np.nanmean(changes)), *bootstrap_mean(changes))


def score_bias(
    dataset: RetrievalSet, descriptors: np.ndarray, *, factor: float = 2.0, rank: int = 10
) -> np.ndarray:
    """Return the bias of score normalisation for each query, [Q] (DISC21).

    factor: multiple of the similarity to the background
    rank: rank of the background image (1: most similar), at most the number of background images
    With it, one threshold suits all queries. Raises ValueError for a set without background.
    """
    if not len(dataset.background):
        raise ValueError(f"{dataset.name}: score normalisation needs background images, there are none")
    background = rows_at(descriptors, dataset.background)
    scores, _ = top_k(rows_at(descriptors, dataset.queries), background, k=min(rank, len(background)))
    return factor * scores[:, -1]


def nearest(
    dataset: RetrievalSet, ranking: Ranking, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the neighbours of the queries at positions [S], without these, and their scores, [S,k] each."""
    wanted = min(k + 1, len(dataset.database))  # including the query itself
    scores, rows = ranking.nearest(queries, wanted)
    neighbours = dataset.database[rows]
    others = neighbours != dataset.queries[queries][:, None]
    shown = min(k, int(others.sum(1).min()))
    kept = np.stack([np.flatnonzero(row)[:shown] for row in others])
    return np.take_along_axis(neighbours, kept, 1), np.take_along_axis(scores, kept, 1)


def without_ground_truth(dataset: RetrievalSet, ranking: Ranking, k: int, show: int) -> RetrievalResult:
    """Return the neighbours of evenly spaced queries, for a set without ground truth."""
    unknown, empty = np.full(len(dataset.queries), np.nan), np.array([])
    shown = evenly(len(dataset.queries), show)
    neighbours, scores = nearest(dataset, ranking, shown, k)
    return RetrievalResult(
        dataset.name, dataset.measure, np.nan, (np.nan, np.nan), unknown, {},
        "", empty, empty, None, shown, neighbours, scores,
    )  # fmt: skip


def failures_first(per_query: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of `count` queries, the worst half and others evenly spaced, ascending; no NaN."""
    order = np.argsort(per_query, kind="stable")[: np.isfinite(per_query).sum()]
    worst = order[: (count + 1) // 2]
    rest = order[len(worst) :]
    spread = np.linspace(0, max(len(rest) - 1, 0), min(count - len(worst), len(rest))).astype(int)
    return np.concatenate([worst, rest[spread]])


def worst_to_best(per_query: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of at most `count` queries, ascending and evenly spaced in rank; no NaN.

    The first is the worst query, the last one the best; for an odd count, the one between is the median.
    """
    order = np.argsort(per_query, kind="stable")[: np.isfinite(per_query).sum()]
    return order[evenly(len(order), count)]


# --- Formatting


def examples(per_query: np.ndarray, measure: str, count: int) -> dict[int, str]:
    """Return {position: title} of `worst_to_best`, or of evenly spaced queries for the measure `none`."""
    if measure == "none":
        return dict.fromkeys(evenly(len(per_query), count).tolist(), "query")
    chosen = worst_to_best(per_query, count).tolist()
    titles = (shown_query(measure, per_query[q]) for q in chosen)
    return dict(zip(chosen, with_places(titles), strict=True))


def with_places(titles: Iterable[str]) -> list[str]:
    """Return the titles of queries, from the worst to the best, with the words worst, middle and best."""
    titles = list(titles)
    places = ["query"] * len(titles)
    if len(places) % 2:
        places[len(places) // 2] = "middle"
    if places:
        places[-1], places[0] = "best", "worst"  # of a single one, the worst
    return [f"{place}: {title}" for place, title in zip(places, titles, strict=True)]


def shown_difference(measure: str, gain: Difference) -> str:
    """Format a difference and its interval, in percentage points or points of the score."""
    scale, digits = (1, 2) if measure == "score" else (100, 1)
    value, low, high = (f"{scale * x:+.{digits}f}" for x in (gain.value, gain.low, gain.high))
    return f"{value} ({low} … {high})"


def shown(result: RetrievalResult) -> str:
    """Format a result's value: mAP in per cent, UKBench's score out of 4."""
    return shown_value(result.measure, result.value)


def shown_value(measure: str, value: float) -> str:
    """Format a value of the measure; `none` reads as not measured."""
    if measure == "none":
        return "not measured: no ground truth"
    return f"{value:.2f} of 4" if measure == "score" else f"{100 * value:.1f} %"


def shown_query(measure: str, value: float) -> str:
    """Format the measure of one query, for the title of a picture."""
    if measure == "Recall@1":
        return "first right" if value else "first wrong"
    return f"score {value:.0f} of 4" if measure == "score" else f"AP {100 * value:.0f} %"


def shown_other(name: str, value: float) -> str:
    """Format one of a result's further measures with its name."""
    return f"{name} {value:g}" if name == "median rank" else f"{name} {100 * value:.1f} %"


def shown_interval(measure: str, low: float, high: float) -> str:
    """Format a confidence interval in the unit of the measure."""
    scale, digits = (1, 2) if measure == "score" else (100, 1)
    return f"{scale * low:.{digits}f} … {scale * high:.{digits}f}"
