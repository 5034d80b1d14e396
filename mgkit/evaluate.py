"""Evaluation: top-1/top-5 of the classifier, and retrieval by the protocols of Holidays, UKBench and Copydays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgkit.datasets import ImageList
from mgkit.embed import feature_maps
from mgkit.metrics import average_precision, positive_ranks, ukbench_score
from mgkit.model import MultiGrain
from mgkit.pooling import gem
from mgkit.retrieval_sets import RetrievalSet
from mgkit.search import check_descriptors


def classify(
    net: MultiGrain, images: ImageList, *, size: int, crop: str = "square", p: float | None = None, **options
) -> tuple[Tensor, Tensor]:
    """Logits [N,K] and labels [N] of the readable images, in their order, on the CPU (section 4.2).

    size: pixels. p: pooling exponent, None for the network's own. options: as for `embed.feature_maps`.
    """
    p = net.pool.p.item() if p is None else p
    parts = []
    for maps, labels, indices in feature_maps(net, images, size=size, crop=crop, **options):
        with torch.no_grad():
            parts.append((net.head(gem(maps, p))["classifier_output"].cpu(), labels.cpu(), indices))
    logits, labels, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    order = indices.argsort()
    return logits[order], labels[order]


@dataclass(frozen=True)
class RetrievalResult:
    """What a protocol measured on one set.

    name: the set. measure: `mAP` (0..1) or `score` (0..4). value: its mean over the queries. per_query: [Q].
    neighbours [Q,k]: image indices, most similar first, without the query. scores [Q,k]: their cosine similarities.
    """

    name: str
    measure: str
    value: float
    per_query: np.ndarray
    neighbours: np.ndarray
    scores: np.ndarray


def retrieve(retrieval_set: RetrievalSet, descriptors: np.ndarray, *, k: int = 10) -> RetrievalResult:
    """Rank the set's database for each query and measure it by the set's own protocol (section 4.3).

    descriptors: L2-normalised, [N,D], one for each of the set's images. k: neighbours kept for showing. A query never
    ranks itself, but UKBench's score counts it as found first. Raises ValueError for descriptors that do not fit.
    """
    if len(descriptors) != len(retrieval_set.images):
        raise ValueError(
            f"{len(descriptors)} descriptors for the {len(retrieval_set.images)} images of {retrieval_set.name}"
        )
    check_descriptors(descriptors[retrieval_set.queries], descriptors[retrieval_set.database])
    measured = [rank_query(retrieval_set, descriptors, q, k) for q in range(len(retrieval_set.queries))]
    values, neighbours, scores = (np.array(column) for column in zip(*measured, strict=True))
    return RetrievalResult(
        retrieval_set.name, retrieval_set.measure, float(values.mean()), values, neighbours, scores
    )


def rank_query(
    retrieval_set: RetrievalSet, descriptors: np.ndarray, q: int, k: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """The measure of one query, and its k nearest images with their scores."""
    query = retrieval_set.queries[q]
    database = retrieval_set.database[retrieval_set.database != query]
    scores = descriptors[database] @ descriptors[query]  # [N]
    ranks = positive_ranks(scores, np.flatnonzero(np.isin(database, retrieval_set.positives[q])))
    if retrieval_set.measure == "score":
        value = ukbench_score([np.concatenate([[0], ranks + 1])])  # the query itself comes first
    else:
        value = average_precision(ranks, len(retrieval_set.positives[q]))
    nearest = np.argsort(-scores, kind="stable")[:k]
    return value, database[nearest], scores[nearest]


def failures_first(result: RetrievalResult, count: int) -> np.ndarray:
    """The positions of `count` queries, half the worst and half spread over the rest, by rising measure."""
    order = np.argsort(result.per_query, kind="stable")
    worst = order[: (count + 1) // 2]
    rest = order[len(worst) :]
    spread: Sequence[int] = np.linspace(0, max(len(rest) - 1, 0), min(count - len(worst), len(rest))).astype(
        int
    )
    return np.concatenate([worst, rest[spread]])
