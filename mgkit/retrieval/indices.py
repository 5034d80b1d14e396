"""Approximate nearest neighbours, for collections past exact search: faiss indices made, kept, searched and compared.

A faiss factory string says what an index does, from left to right: `OPQ64_512,IVF4096,PQ64` rotates a descriptor, files it in one of
4096 lists, and keeps 64 bytes of it. How to choose one: https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import faiss
import numpy as np

from mgkit.machine.download import file_hash
from mgkit.machine.files import atomic_write, write_text
from mgkit.retrieval.search import as_float32, row_norms, slices, top_k

BLOCK = 65_536  # rows added at a time
SAMPLE_A_CENTROID = 64  # rows to train on for every centroid; faiss advises between 39 and 256
ADVISED_A_CENTROID = 39
FORMAT = 1


@dataclass(frozen=True)
class AnnIndex:
    """A faiss index over [count,dim] descriptors, by inner product, and what it was made of.

    factory: faiss's factory string. descriptors: their SHA-256. train_seconds, add_seconds: what making it took.
    """

    index: faiss.Index
    factory: str
    count: int
    dim: int
    descriptors: str
    train_seconds: float
    add_seconds: float


def build_index(
    factory: str, database: np.ndarray, *, train: np.ndarray | None = None, seed: int = 0, block: int = BLOCK
) -> AnnIndex:
    """An index over the database [N,D], by inner product.

    factory: faiss's factory string, for instance `Flat`, `HNSW32`, `IVF1024,Flat`, `OPQ64,IVF4096,PQ64`. train [T,D]: descriptors
    to train on, the database's own by default; of more than 64 a centroid (at least 16,384) a random sample, drawn by seed, is taken. block: rows
    added at a time, so that a memory-mapped file is never copied whole. Raises ValueError for an unknown factory string or
    one that does not fit D, fewer training descriptors than centroids, and descriptors that are not finite.
    """
    check_rows(database, "database", dim=database.shape[-1])
    if train is None:
        train = database
    else:
        check_rows(train, "training set", dim=database.shape[1])
    start = perf_counter()
    index = trained_index(factory, train, seed=seed)
    trained = perf_counter()
    with said_in_a_line(f"index {factory!r}"):
        add(index, database, block=block)
    added = perf_counter()
    return AnnIndex(index, factory, *database.shape, fingerprint(database), trained - start, added - trained)


def check_factory(factory: str, dim: int) -> None:
    """ValueError, naming the factory string, unless faiss can make that index of descriptors of dim dimensions."""
    with said_in_a_line(f"index {factory!r} for {dim} dimensions"):
        faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)


def trained_index(factory: str, train: np.ndarray, *, seed: int = 0) -> faiss.Index:
    """An index without rows, trained on a sample of [T,D]; `clone_index` of faiss copies it for every shard of a collection."""
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


def add(
    index: faiss.Index, database: np.ndarray, *, ids: np.ndarray | None = None, block: int = BLOCK
) -> None:
    """Add rows [n,D] block by block; ids [n] int64: what a search gives back for them, where not their order (IVF only)."""
    for part in slices(len(database), block):
        rows = as_float32(database[part])
        if ids is None:
            index.add(rows)
        else:
            index.add_with_ids(rows, ids[part])


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
    for _ in row_norms(rows, name):
        pass


def set_nprobe(ann: AnnIndex, nprobe: int) -> None:
    lists = inverted_lists(ann.index)
    if lists is None:
        raise ValueError(f"nprobe is for indices with inverted lists (IVF), and {ann.factory!r} has none")
    if not 1 <= nprobe <= lists.nlist:
        raise ValueError(
            f"nprobe must lie between 1 and the {lists.nlist} lists of {ann.factory!r}, got {nprobe}"
        )
    lists.nprobe = nprobe


# --- On disk


def save_index(path: str | Path, ann: AnnIndex) -> None:
    """Write the index in faiss's format, and beside it <path>.json: what it was made of, and its own SHA-256."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file for the index")
    with atomic_write(path) as temporary:
        faiss.write_index(ann.index, str(temporary))
        facts = {key: value for key, value in vars(ann).items() if key != "index"}
        facts |= {"format": FORMAT, "file": file_hash(temporary)}
        # Before the index: if it stops in between, the old index does not fit the new facts, and is refused.
        write_text(facts_path(path), json.dumps(facts, indent=1) + "\n")


def load_index(path: str | Path, *, database: np.ndarray | None = None) -> AnnIndex:
    """Read what `save_index` wrote; database [N,D]: the descriptors that it must have been built from.

    faiss executes nothing from a file, but trusts the sizes in it, so only a file with the SHA-256 that was recorded is given to
    it: that finds damage. It does not prove who wrote the two files; load those of people you trust.
    Raises FileNotFoundError and ValueError, naming the file, if one is missing, damaged, or of other descriptors.
    """
    path = Path(path)
    facts = read_facts(path)
    if facts.pop("file") != file_hash(path):
        raise ValueError(f"{path} is damaged or does not belong to {facts_path(path).name}: build it again")
    if database is not None:
        shape = (facts["count"], facts["dim"])
        if database.shape != shape:
            raise ValueError(
                f"{path} was built from descriptors {shape}, not {database.shape}: build it again"
            )
        if fingerprint(database) != facts["descriptors"]:
            raise ValueError(f"{path} was built from other descriptors of the same shape: build it again")
    with said_in_a_line(str(path)):
        index = faiss.read_index(str(path))
    if (index.ntotal, index.d) != (facts["count"], facts["dim"]):
        raise ValueError(f"{path} holds {index.ntotal} rows of {index.d}, not what its .json says")
    return AnnIndex(index=index, **facts)


def facts_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_facts(path: Path) -> dict:
    """The content of <path>.json, of the right fields and types."""
    for part in (path, facts_path(path)):
        if not part.is_file():
            raise FileNotFoundError(
                f"{part} does not exist; save_index writes an index and its .json together"
            )
    fields = {name: kind for name, kind in AnnIndex.__annotations__.items() if name != "index"}
    try:
        facts = json.loads(facts_path(path).read_text(encoding="utf-8"))
        if facts.pop("format") != FORMAT or facts.keys() != fields.keys() | {"file"}:
            raise ValueError
        if not all(isinstance(facts[name], kind) for name, kind in fields.items()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):  # the first: no JSON or no text
        raise ValueError(f"{facts_path(path)} is not the description of an index: build it again") from None
    return facts


def fingerprint(database: np.ndarray) -> str:
    """SHA-256 of the shape and the float32 values [N,D], block by block."""
    digest = hashlib.sha256(repr(database.shape).encode())
    for part in slices(len(database), BLOCK):
        digest.update(as_float32(database[part]))
    return digest.hexdigest()


# --- Comparison


@dataclass(frozen=True)
class Measured:
    """An index on one set of descriptors and queries, beside exact search.

    recall1, recall10: share of the exact first 1 and 10 that are among its first 1 and 10, 0..1. bytes_per_vector: what a row adds to
    the index as written; table_bytes: what that takes without rows. train_seconds and add_seconds: to make it. query_ms: a query, all queries at once.
    speedup: time of exact search, `top_k`, over its own. count, dim: of the descriptors.
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
    count: int
    dim: int


def compare(
    factories: Sequence[str],
    database: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 10,
    nprobe: int = 16,
    seed: int = 0,
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
        ann = build_index(factory, database, seed=seed)
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
                ann.train_seconds, ann.add_seconds, 1000 * own / len(queries), beside / own, count, dim,
            )
        )  # fmt: skip
    plain = Measured("exact", 1.0, 1.0, 4.0 * dim, 0, 0.0, 0.0, 1000 * median(exact_seconds) / len(queries), 1.0, count, dim)  # fmt: skip
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
