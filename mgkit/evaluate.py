"""Evaluation: top-1/top-5 of the classifier, and retrieval by the protocols of Holidays, UKBench and Copydays."""

from dataclasses import asdict, dataclass

import numpy as np
import torch

from mgkit.config import ClassifyConfig, RetrievalConfig
from mgkit.datasets import UnreadableImages, validation_images
from mgkit.embed import pooled
from mgkit.experiment import Run, data_root
from mgkit.files import find_path
from mgkit.finetune import in_classes_of, p_star, sweep_p
from mgkit.metrics import average_precision, positive_ranks, ukbench_score
from mgkit.model import MultiGrain
from mgkit.pooling import l2_normalize
from mgkit.retrieval_sets import RetrievalSet, find_sets
from mgkit.search import top_k
from mgkit.train import trained_network
from mgkit.whitening import whitened_network


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
    if not len(retrieval_set.queries):
        raise ValueError(f"{retrieval_set.name}: no query is left that has a positive")
    values = np.array(
        [measure_query(retrieval_set, descriptors, q) for q in range(len(retrieval_set.queries))]
    )
    neighbours, scores = nearest(retrieval_set, descriptors, k)
    return RetrievalResult(
        retrieval_set.name, retrieval_set.measure, float(values.mean()), values, neighbours, scores
    )


def measure_query(retrieval_set: RetrievalSet, descriptors: np.ndarray, q: int) -> float:
    """Average precision or UKBench score of one query; NaN where there is no ground truth."""
    query, positives = retrieval_set.queries[q], retrieval_set.positives[q]
    if retrieval_set.measure == "none":
        return np.nan
    database = retrieval_set.database[retrieval_set.database != query]
    scores = descriptors[database] @ descriptors[query]  # [N]
    ranks = positive_ranks(scores, np.flatnonzero(np.isin(database, positives)))
    if retrieval_set.measure == "score":
        return ukbench_score([np.concatenate([[0], ranks + 1])])  # the query itself comes first
    return average_precision(ranks, len(positives))


def nearest(retrieval_set: RetrievalSet, descriptors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(neighbours, scores), [Q,k] each: what the database holds nearest to each query, itself left out."""
    queries, database = retrieval_set.queries, retrieval_set.database
    wanted = min(k + 1, len(database))  # one more, for the query itself
    scores, rows = top_k(descriptors[queries], descriptors[database], k=wanted)
    neighbours = database[rows]
    others = neighbours != queries[:, None]
    shown = min(k, int(others.sum(1).min()))
    kept = [np.flatnonzero(row)[:shown] for row in others]
    return np.take_along_axis(neighbours, np.stack(kept), 1), np.take_along_axis(scores, np.stack(kept), 1)


def failures_first(result: RetrievalResult, count: int) -> np.ndarray:
    """The positions of `count` queries, half the worst and half spread over the rest, by rising measure."""
    order = np.argsort(result.per_query, kind="stable")
    worst = order[: (count + 1) // 2]
    rest = order[len(worst) :]
    spread = np.linspace(0, max(len(rest) - 1, 0), min(count - len(worst), len(rest))).astype(int)
    return np.concatenate([worst, rest[spread]])


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in 0..1 of one crop, size (px) and pooling exponent; `exponent` says whether p is `trained` or `p*`."""

    crop: str
    size: int
    exponent: str
    p: float
    top1: float
    top5: float


def evaluate_classification(config: ClassifyConfig) -> list[Accuracy]:
    """Top-1/top-5 of the experiment's network for every crop and size, with the training exponent and with p*.

    Both exponents come from one backbone pass. Writes outputs/<experiment>/evaluate_imagenet/results.json.
    """
    net, _ = trained_network(config)
    images = validation_images(data_root(config.data), val_fraction=config.val_fraction)
    images = in_classes_of(net, images.with_exif(config.exif))
    training_p = net.pool.p.item()
    best = {size: p_star(config, net, size=size, crop="rect") for size in config.sizes}
    run = Run("evaluate_imagenet", config, checkpoint=net.source)
    unreadable = UnreadableImages(config.on_unreadable)
    rows = []
    for crop in config.crops:
        for size in config.sizes:
            exponents = {"trained": training_p, "p*": best[size]}
            accuracy = sweep_p(
                net, images, sizes=[size], ps=list(exponents.values()), crop=crop, batch_size=config.batch_size,
                workers=config.workers, precision=config.precision, unreadable=unreadable,
            )[0]  # fmt: skip
            rows += [
                Accuracy(crop, size, name, p, *map(float, of_p))
                for (name, p), of_p in zip(exponents.items(), accuracy, strict=True)
            ]
    unreadable.report()
    run.results({"images": len(images), "rows": [asdict(row) for row in rows]})
    return rows


@dataclass(frozen=True)
class Retrieval:
    """One set searched with one kind of descriptor: its name, the exponent p, and what the protocol measured."""

    descriptor: str
    p: float
    retrieval_set: RetrievalSet
    result: RetrievalResult


def evaluate_retrieval(config: RetrievalConfig) -> list[Retrieval]:
    """Every set below data, with GeM embeddings at the training exponent and at p*, and whitened at p*.

    All kinds of descriptor come from one backbone pass an image. Writes outputs/<experiment>/evaluate_retrieval/results.json.
    """
    net, checkpoint = whitened_network(config)
    root = data_root(config.data)
    distractors = str(find_path(config.distractors)) if config.distractors else ""
    sets = find_sets(root, names=config.sets, distractors=distractors)
    p = net.pool.p.item() if config.p is None else config.p
    training_p = checkpoint.get("training_p", p)
    run = Run("evaluate_retrieval", config, checkpoint=net.source)
    unreadable = UnreadableImages(config.on_unreadable)
    found = []
    for each in sets:
        images = each.images.with_exif(config.exif)
        at_training_p, at_p = pooled(
            net, images, size=config.size, crop=config.crop, ps=[training_p, p], batch_size=config.batch_size,
            workers=config.workers, precision=config.precision, unreadable=unreadable, description=each.name,
        )  # fmt: skip
        kept = np.isfinite(at_p[:, 0])  # the readable images
        readable = each.only(kept)
        for name, exponent, rows in descriptors(net, at_training_p, at_p, training_p, p):
            result = retrieve(readable, rows[kept])
            found.append(Retrieval(name, exponent, readable, result))
            print(f"{each.name}, {name}, {result.measure} {shown(result)}")
    unreadable.report()
    run.results({
        "size": config.size, "crop": config.crop, "rows": [
            {"set": r.result.name, "descriptor": r.descriptor, "p": r.p, "measure": r.result.measure,
             "value": None if r.result.measure == "none" else r.result.value, "queries": len(r.result.per_query)} for r in found
        ],
    })  # fmt: skip
    return found


def descriptors(
    net: MultiGrain, at_training_p: np.ndarray, at_p: np.ndarray, training_p: float, p: float
) -> list[tuple[str, float, np.ndarray]]:
    """Kinds of descriptor of pooled features [N,C]: (name, exponent, L2-normalised rows [N,D])."""
    kinds = [("GeM, training p", training_p, normalized(at_training_p))]
    if p != training_p:
        kinds.append(("GeM, p*", p, normalized(at_p)))
    if net.whitening is not None:
        with torch.no_grad():
            device = net.classifier.weight.device
            whitened = net.head(torch.from_numpy(at_p).to(device))["normalized_embedding"].cpu().numpy()
        kinds.append(("GeM, p*, whitened", p, whitened))
    return kinds


def normalized(rows: np.ndarray) -> np.ndarray:
    return l2_normalize(torch.from_numpy(rows)).numpy()


def shown(result: RetrievalResult) -> str:
    """The value as tables print it: mAP in per cent, UKBench's score out of 4."""
    return shown_value(result.measure, result.value)


def shown_value(measure: str, value: float) -> str:
    """A mAP in per cent, a score out of 4, or that nothing was measured."""
    if measure == "none":
        return "not measured: no ground truth"
    return f"{100 * value:.1f} %" if measure == "mAP" else f"{value:.2f} of 4"
