"""Approximate nearest neighbours, for collections past exact search: faiss indices made, searched and compared.

A faiss factory string says what an index does, from left to right: `OPQ64_512,IVF4096,PQ64` rotates a descriptor, files it in one of
4096 lists, and keeps 64 bytes of it. How to choose one: https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import faiss
import numpy as np

from mgkit.retrieval.search import as_float32, largest_norm, slices, top_k

BLOCK = 65_536  # rows added at a time
SAMPLE_A_CENTROID = 64  # rows to train on for every centroid; faiss advises between 39 and 256
ADVISED_A_CENTROID = 39


@dataclass(frozen=True)
class AnnIndex:
    """A faiss index over [count,dim] descriptors, by inner product.

    factory: faiss's factory string.
    train_seconds, add_seconds: what making it took.
    """

    index: faiss.Index
    factory: str
    count: int
    dim: int
    train_seconds: float
    add_seconds: float


def build_index(factory: str, database: np.ndarray, *, seed: int = 0, block: int = BLOCK) -> AnnIndex:
    """An index over the database, by inner product.

    factory: faiss's factory string, for instance `Flat`, `HNSW32`, `IVF1024,Flat`, `OPQ64,IVF4096,PQ64`.
    database: [N,D]; of more than 64 rows per centroid (at least 16,384) a random sample is trained on.
    seed: of the sample.
    block: rows added at a time, so that a memory-mapped file is never copied whole.
    Raises ValueError for an unknown factory string or one that does not fit D, fewer rows than centroids, and
    descriptors that are not finite.
    """
    check_rows(database, "database", dim=database.shape[-1])
    start = perf_counter()
    index = trained_index(factory, database, seed=seed)
    trained = perf_counter()
    with said_in_a_line(f"index {factory!r}"):
        for part in slices(len(database), block):
            index.add(as_float32(database[part]))
    return AnnIndex(index, factory, *database.shape, trained - start, perf_counter() - trained)


def check_factory(factory: str, dim: int) -> None:
    """ValueError, naming the factory string, unless faiss can make that index of descriptors of dim dimensions."""
    with said_in_a_line(f"index {factory!r} for {dim} dimensions"):
        faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)


def trained_index(factory: str, train: np.ndarray, *, seed: int = 0) -> faiss.Index:
    """An index without rows, trained on a sample of [T,D]."""
    dim = train.shape[1]
    with said_in_a_line(f"index {factory!r} for {dim} dimensions"):
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if index.is_trained:
            return index
        centroids = most_centroids(index)
        if len(train) < centroids:
            raise ValueError(
                f"index {factory!r} needs at least {centroids} descriptors to train on, got {len(train)}"
            )
        if len(train) < ADVISED_A_CENTROID * centroids:
            print(
                f"index {factory!r} trains {centroids} centroids on {len(train)} descriptors; "
                f"{ADVISED_A_CENTROID * centroids} or more make better ones"
            )
        sample = min(len(train), SAMPLE_A_CENTROID * max(centroids, 256))
        chosen = np.random.default_rng(seed).choice(len(train), sample, replace=False)
        for part in parts(index):
            if hasattr(part, "do_polysemous_training"):
                part.do_polysemous_training = False  # slow, and for a filter that is not used here
            if isinstance(
                part, faiss.OPQMatrix
            ):  # 256 centroids whatever the lists: four times as fast as its default
                part.max_train_points = 256 * SAMPLE_A_CENTROID
        with silent_clustering(index):
            index.train(as_float32(train[np.sort(chosen)]))
    return index


def search_index(
    ann: AnnIndex, queries: np.ndarray, *, k: int, nprobe: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows that the index holds nearest to queries [Q,D]: scores [Q,k] float32 and indices [Q,k] int64, best first.

    nprobe: lists looked into, of an IVF index; more find more and take longer. Where these hold fewer than k rows, the rest has
    index -1 and score -inf. Scores are the index's own, approximate for compressed rows.
    Raises ValueError for k > N, another D, an nprobe that does not fit, or queries that are not finite.
    """
    check_rows(queries, "queries", dim=ann.dim)
    if not 1 <= k <= ann.count:
        raise ValueError(f"k must lie between 1 and the {ann.count} images of the index, got {k}")
    if nprobe is not None:
        set_nprobe(ann, nprobe)
    scores, indices = ann.index.search(as_float32(queries), k)
    scores[indices < 0] = -np.inf
    return scores, indices


def check_rows(rows: np.ndarray, name: str, *, dim: int) -> None:
    """Raise ValueError, with `name`, unless rows are [n,dim] and finite."""
    if rows.ndim != 2 or rows.shape[1] != dim or not dim:
        raise ValueError(f"descriptors of the {name} must be [n,{dim}], as the index is, got {rows.shape}")
    largest_norm(rows, name)


def set_nprobe(ann: AnnIndex, nprobe: int) -> None:
    lists = inverted_lists(ann.index)
    if lists is None:
        raise ValueError(f"nprobe is for indices with inverted lists (IVF), and {ann.factory!r} has none")
    if not 1 <= nprobe <= lists.nlist:
        raise ValueError(
            f"nprobe must lie between 1 and the {lists.nlist} lists of {ann.factory!r}, got {nprobe}"
        )
    lists.nprobe = nprobe


# --- Comparison


@dataclass(frozen=True)
class Measured:
    """An index on one set of descriptors and queries, beside exact search.

    recall1, recall10: share of the exact first 1 and 10 that are among its first 1 and 10, 0..1.
    bytes_per_vector: what a row adds to the index as written; table_bytes: what that takes without rows.
    train_seconds, add_seconds: to make it.
    query_ms: per query, all queries at once.
    speedup: time of exact search, `top_k`, over its own.
    """

    factory: str
    recall1: float
    recall10: float
    bytes_per_vector: float
    table_bytes: int
    train_seconds: float
    add_seconds: float
    query_ms: float
    speedup: float


def compare(
    factories: Sequence[str],
    database: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 10,
    nprobe: int = 16,
    repeats: int = 3,
) -> list[Measured]:
    """Recall, size and time of exact search and of an index for every factory string, on the same descriptors and queries.

    database [N,D], queries [Q,D]; k: neighbours searched, at least 10. nprobe: lists looked into, of IVF indices, at most all.
    Times are medians of so many repeats, exact search and index by turns. The first row is exact search itself.
    """
    if k < 10:
        raise ValueError(f"k must be at least 10, for recall@10, got {k}")
    seconds, truth = timed(lambda: top_k(queries, database, k=k)[1])
    count, dim = database.shape
    rows, exact_seconds = [], [seconds]
    for factory in factories:
        ann = build_index(factory, database)
        lists = inverted_lists(ann.index)
        probes = min(nprobe, lists.nlist) if lists is not None else None
        own_seconds = []
        for _ in range(repeats):
            seconds, found = timed(lambda: search_index(ann, queries, k=k, nprobe=probes)[1])  # noqa: B023
            own_seconds.append(seconds)
            exact_seconds.append(timed(lambda: top_k(queries, database, k=k))[0])
        own, beside = median(own_seconds), median(exact_seconds[-repeats:])
        empty = faiss.clone_index(ann.index)
        empty.reset()
        tables = size(empty)
        rows.append(
            Measured(
                factory, recall(found, truth, 1), recall(found, truth, 10), (size(ann.index) - tables) / count, tables,
                ann.train_seconds, ann.add_seconds, 1000 * own / len(queries), beside / own,
            )
        )  # fmt: skip
    plain = Measured("exact", 1.0, 1.0, 4.0 * dim, 0, 0.0, 0.0, 1000 * median(exact_seconds) / len(queries), 1.0)  # fmt: skip
    return [plain, *rows]


def timed(call: Callable) -> tuple:
    """(seconds, result) of a call."""
    start = perf_counter()
    result = call()
    return perf_counter() - start, result


def recall(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of the true first k that are among the found first k; both [Q,>=k]."""
    return float((found[:, :k, None] == truth[:, None, :k]).any(1).mean())


def size(index: faiss.Index) -> int:
    """Bytes of the index as written, without writing it."""
    total = 0

    def count(part: bytes) -> int:
        nonlocal total
        total += len(part)
        return len(part)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return total


def table(rows: Sequence[Measured]) -> str:
    """The comparison as text, a line an index."""
    lines = [
        f"{'index':24} {'recall@1':>9} {'recall@10':>9} {'bytes':>8} {'tables MB':>10} {'build s':>8} {'ms/query':>9} {'speed-up':>9}"
    ]
    lines += [
        f"{row.factory:24} {row.recall1:9.3f} {row.recall10:9.3f} {row.bytes_per_vector:8.1f} {row.table_bytes / 1e6:10.2f} "
        f"{row.train_seconds + row.add_seconds:8.1f} {row.query_ms:9.3f} {row.speedup:9.1f}"
        for row in rows
    ]
    return "\n".join(lines)


# --- What faiss says and has


@contextmanager
def said_in_a_line(what: str) -> Iterator[None]:
    """faiss's errors as a ValueError of one line: what it was about and the reason, without the C++ around it."""
    try:
        yield
    except RuntimeError as error:
        reason = re.split(r"' failed: |\.(?:cpp|h):\d+: ", " ".join(str(error).split()))[-1]
        raise ValueError(f"{what}: {reason}") from None


def parts(index: faiss.Index) -> list:
    """What a row passes through: transforms, then the innermost index, as objects of their own classes."""
    if isinstance(index, faiss.IndexPreTransform):
        chain = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        return [*chain, *parts(faiss.downcast_index(index.index))]
    return [index]


def inverted_lists(index: faiss.Index) -> faiss.IndexIVF | None:
    """The part of the index that files rows in lists, if it has one."""
    return next((part for part in parts(index) if isinstance(part, faiss.IndexIVF)), None)


def most_centroids(index: faiss.Index) -> int:
    """The largest number of centroids in one part of the index: training takes at least so many rows."""
    found = [1]
    for part in parts(index):
        if isinstance(part, faiss.IndexIVF):
            found.append(part.nlist)
        if isinstance(part, faiss.OPQMatrix):
            found.append(256)
        elif hasattr(part, "pq"):
            found.append(part.pq.ksub)
    return max(found)


@contextmanager
def silent_clustering(index: faiss.Index) -> Iterator[None]:
    """faiss prints a line for every k-means on few rows, hundreds for OPQ; `trained_index` says it once."""
    rotations = [part for part in parts(index) if isinstance(part, faiss.OPQMatrix)]
    quantizers = [faiss.ProductQuantizer(rotation.d_out, rotation.M, 8) for rotation in rotations]
    for rotation, quantizer in zip(rotations, quantizers, strict=True):
        rotation.pq = quantizer
    for part in parts(index):
        for clustered in (part, getattr(part, "pq", None)):
            if hasattr(clustered, "cp"):
                clustered.cp.min_points_per_centroid = 1
    try:
        yield
    finally:
        for rotation in rotations:
            rotation.pq = None  # faiss does not keep what it points to
