"""Approximate nearest neighbours by faiss indices, and their comparison with exact search.

An index is given by faiss's factory string: `OPQ64_512,IVF4096,PQ64` rotates descriptors, sorts them into
4096 lists and compresses each to 64 bytes. How to choose one:
https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import faiss
import numpy as np

from mgkit.machine.records import shown
from mgkit.retrieval.search import as_float32, largest_norm, slices, top_k

BLOCK = 65_536  # rows per call of `add`, so that a memory-mapped file is not copied as a whole
SAMPLES_PER_CENTROID = 64  # training rows; faiss recommends 39 to 256
ADVISED_PER_CENTROID = 39
MOST = {r"\d+": 2**20, r"(?<=x)\d+": 16, r"(?<=HNSW)\d+": 512}  # lists, bits of a code, links of a row


@dataclass(frozen=True)
class AnnIndex:
    """A faiss index of descriptors [count,dim] by inner product.

    factory: faiss's factory string
    train_seconds, add_seconds: time to train the index and to add the rows
    """

    index: faiss.Index
    factory: str
    count: int
    dim: int
    train_seconds: float
    add_seconds: float


def build_index(factory: str, database: np.ndarray, *, seed: int = 0) -> AnnIndex:
    """Build an index of the database by inner product.

    factory: faiss's factory string, such as `Flat`, `HNSW32`, `IVF1024,Flat`, `OPQ64,IVF4096,PQ64`
    database: descriptors ([N,D]); training samples 64 rows per centroid, at least 16,384
    seed: of the sample
    Raises ValueError for a factory string that is unknown or does not fit D, fewer rows than centroids, and
    non-finite descriptors.
    """
    check_rows(database, "database", dim=database.shape[-1])
    start = perf_counter()
    index = trained_index(factory, database, seed=seed)
    trained = perf_counter()
    with one_line_errors(f"index {factory!r}"):
        for part in slices(len(database), BLOCK):
            index.add(as_float32(database[part]))
    return AnnIndex(index, factory, *database.shape, trained - start, perf_counter() - trained)


def check_factory(factory: str, dim: int) -> None:
    """Raise ValueError, naming the factory string, unless faiss can build the index for `dim` dimensions."""
    if not factory.isascii():
        raise ValueError(f"index {shown(factory)}: a factory string of faiss has no such characters")
    for pattern, most in {**MOST, r"(?<=PCA)[RWL]*\d+": dim}.items():
        for found in re.findall(pattern, factory):
            digits = found.lstrip("RWL")
            if len(digits) > 9 or not 1 <= int(digits) <= most:
                raise ValueError(
                    f"index {shown(factory)} for {dim} dimensions: {digits} is not in 1 to {most}"
                )
    with one_line_errors(f"index {factory!r} for {dim} dimensions"):
        faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)


def trained_index(factory: str, train: np.ndarray, *, seed: int = 0) -> faiss.Index:
    """Return an empty index, trained on a sample of descriptors [T,D]."""
    dim = train.shape[1]
    with one_line_errors(f"index {factory!r} for {dim} dimensions"):
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if index.is_trained:
            return index
        centroids = max_centroids(index)
        if len(train) < centroids:
            raise ValueError(f"index {factory!r} needs {centroids} descriptors to train on, got {len(train)}")
        if len(train) < ADVISED_PER_CENTROID * centroids:
            print(
                f"index {factory!r} trains {centroids} centroids on {len(train)} descriptors; "
                f"{ADVISED_PER_CENTROID * centroids} or more are recommended"
            )
        sample = min(len(train), SAMPLES_PER_CENTROID * max(centroids, 256))
        chosen = np.random.default_rng(seed).choice(len(train), sample, replace=False)
        for part in parts(index):
            if hasattr(part, "do_polysemous_training"):
                part.do_polysemous_training = False  # slow, and only for a filter that is not used here
            if isinstance(part, faiss.OPQMatrix):  # trains 256 centroids; four times as fast as its default
                part.max_train_points = 256 * SAMPLES_PER_CENTROID
        with silent_clustering(index):
            index.train(as_float32(train[np.sort(chosen)]))
    return index


def search_index(
    ann: AnnIndex, queries: np.ndarray, *, k: int, nprobe: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of each query: scores [Q,k] float32 and indices [Q,k] int64, best first.

    ann: the index
    queries: descriptors ([Q,D])
    k: number of neighbours
    nprobe: number of lists searched, for IVF indices; where they hold fewer than k rows, the remaining
    indices are -1 and scores -inf
    Scores of compressed rows are approximate. Raises ValueError for k > N, another D, an nprobe that does not
    fit, or non-finite queries.
    """
    check_rows(queries, "queries", dim=ann.dim)
    if not 1 <= k <= ann.count:
        raise ValueError(f"k must be between 1 and the {ann.count} images of the index, got {k}")
    if nprobe is not None:
        set_nprobe(ann, nprobe)
    scores, indices = ann.index.search(as_float32(queries), k)
    scores[indices < 0] = -np.inf
    return scores, indices


def check_rows(rows: np.ndarray, name: str, *, dim: int) -> None:
    """Raise ValueError, naming the rows, unless they are [n,dim] and finite."""
    if rows.ndim != 2 or rows.shape[1] != dim or not dim:
        raise ValueError(f"descriptors of the {name} must be [n,{dim}] as in the index, got {rows.shape}")
    largest_norm(rows, name)


def set_nprobe(ann: AnnIndex, nprobe: int) -> None:
    lists = inverted_lists(ann.index)
    if lists is None:
        raise ValueError(f"nprobe is for indices with inverted lists (IVF), {ann.factory!r} has none")
    if not 1 <= nprobe <= lists.nlist:
        lists_of = f"the {lists.nlist} lists of {ann.factory!r}"
        raise ValueError(f"nprobe must be between 1 and {lists_of}, got {nprobe}")
    lists.nprobe = nprobe


# --- Comparison


@dataclass(frozen=True)
class Measured:
    """Measurements of an index against exact search.

    recall1, recall10: share of the exact 1 and 10 nearest found among the first 1 and 10 (0..1)
    bytes_per_vector, table_bytes: size of the saved index per row, and without rows
    train_seconds, add_seconds: time to build the index
    query_ms: time per query, all queries in one call
    speedup: time of `top_k` divided by that of the index
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
    """Measure recall, size and time of exact search and of each index on the same descriptors.

    factories: faiss's factory strings
    database, queries: descriptors ([N,D], [Q,D])
    k: number of neighbours, at least 10
    nprobe: number of lists searched, for IVF indices (at most all)
    repeats: times are medians of so many runs, alternating exact search and index
    Returns exact search first, then the indices.
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
                factory, recall(found, truth, 1), recall(found, truth, 10),
                (size(ann.index) - tables) / count, tables,
                ann.train_seconds, ann.add_seconds, 1000 * own / len(queries), beside / own,
            )
        )  # fmt: skip
    exact_ms = 1000 * median(exact_seconds) / len(queries)
    return [Measured("exact", 1.0, 1.0, 4.0 * dim, 0, 0.0, 0.0, exact_ms, 1.0), *rows]


def timed(call: Callable) -> tuple:
    """Return (seconds, result) of a call."""
    start = perf_counter()
    result = call()
    return perf_counter() - start, result


def recall(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Return the share of the true first k among the first k found; both [Q,>=k]."""
    return float((found[:, :k, None] == truth[:, None, :k]).any(1).mean())


def size(index: faiss.Index) -> int:
    """Return the size of the saved index in bytes, without saving it."""
    written = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda part: written.append(len(part))))
    return sum(written)


def table(rows: Sequence[Measured]) -> str:
    """Format the comparison, one line per index."""
    header = f"{'index':24} {'recall@1':>9} {'recall@10':>9} {'bytes':>8} {'tables MB':>10} {'build s':>8}"
    lines = [
        f"{row.factory:24} {row.recall1:9.3f} {row.recall10:9.3f} {row.bytes_per_vector:8.1f} "
        f"{row.table_bytes / 1e6:10.2f} {row.train_seconds + row.add_seconds:8.1f} "
        f"{row.query_ms:9.3f} {row.speedup:9.1f}"
        for row in rows
    ]
    return "\n".join([f"{header} {'ms/query':>9} {'speed-up':>9}", *lines])


# --- faiss's errors and parts


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Raise faiss's errors as a ValueError of one line: the context and the reason."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = re.split(r"' failed: |\.(?:cpp|h):\d+: ", " ".join(str(error).split()))[-1]
        raise ValueError(f"{what}: {reason}") from None


def parts(index: faiss.Index) -> list:
    """Return the transforms and the innermost index that a row passes, as objects of their own classes."""
    if isinstance(index, faiss.IndexPreTransform):
        chain = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        return [*chain, *parts(faiss.downcast_index(index.index))]
    return [index]


def inverted_lists(index: faiss.Index) -> faiss.IndexIVF | None:
    """Return the IVF part of the index, if any."""
    return next((part for part in parts(index) if isinstance(part, faiss.IndexIVF)), None)


def max_centroids(index: faiss.Index) -> int:
    """Return the largest number of centroids in a part of the index, the least number of training rows."""
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
    """Suppress faiss's warnings for each k-means on few rows, which `trained_index` prints once."""
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
            rotation.pq = None  # faiss does not own it
