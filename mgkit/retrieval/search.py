"""Exact nearest neighbours by inner product, in bounded memory.

Results equal sorted float64 products (`inner_products`), with ties in database order. Float32 products, by
faiss on CPUs and torch on GPUs, select candidates; a bound on their rounding error verifies the selection;
float64 products rank the candidates.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import torch

from mgkit.machine.device import pick_device

MEMORY = 256 * 2**20  # bytes of temporary arrays on host and device each, unless one query needs more
QUERIES_AT_ONCE = 1024
MARGIN = 8  # candidates beyond k
CANDIDATE_BYTES, SCORE_BYTES = 160, 128  # per candidate, and per score of `similarities`, with copies
BATCH_BYTES = 2**22  # of candidates multiplied in float64 at a time, by each thread
FEWEST_BATCHES = 8  # of BATCH_BYTES for each thread, below which one thread multiplies all
CACHED_BYTES = 2**20  # of rows converted or multiplied at a time, to stay in the processor's cache
SMALLEST = 2.0**-126  # smallest normal float32; values below may be flushed to zero


def top_k(
    queries: np.ndarray, database: np.ndarray, *, k: int, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest database rows of each query, by inner product (cosine, if L2-normalised).

    queries, database: descriptors ([Q,D], [N,D]); float32 or a type that converts to it, may be memory-mapped
    k: number of neighbours
    device: for the float32 products; None: the GPU if there is one
    Returns scores [Q,k] float32 and indices [Q,k] int64, best first, ties by index.
    Raises ValueError for k > N, unequal D, or non-finite descriptors.
    """
    largest, count = check_descriptors(queries, database), len(database)
    if not 1 <= k <= count:
        raise ValueError(f"k must be between 1 and the {count} images of the database, got {k}")
    return best_rows(queries, np.arange(len(queries)), database, k, largest, device or pick_device())


def top_pairs(
    queries: np.ndarray,
    database: np.ndarray,
    *,
    count: int,
    bias: np.ndarray | None = None,
    device: torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `count` most similar of all Q·N pairs of query and row, or all if there are fewer.

    queries, database, device: as for `top_k`
    count: number of pairs
    bias: subtracted from the scores of each query ([Q])
    Returns scores [R] float32, descending, and query and row indices, [R] int64; ties by query, then row.
    Raises ValueError for unequal D, non-finite values, a bias of another shape, or count < 1.
    """
    largest, device = check_descriptors(queries, database), device or pick_device()
    bias = np.zeros(len(queries)) if bias is None else np.asarray(bias, np.float64)
    if bias.shape != (len(queries),) or not np.isfinite(bias).all():
        raise ValueError(f"bias must hold {len(queries)} finite numbers, one per query, got {bias.shape}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    scores, q, rows = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
    wanted = np.arange(len(queries) if len(database) else 0)
    k = min(len(database), 1 + 2 * count // max(1, len(queries)))
    while len(wanted):
        of_query, found = best_rows(queries, wanted, database, k, largest, device)  # [q,k]
        of_query = (of_query - bias[wanted, None]).astype(np.float32)
        kept = ~np.isin(q, wanted)
        scores = np.concatenate([scores[kept], of_query.ravel()])
        q, rows = np.concatenate([q[kept], wanted.repeat(k)]), np.concatenate([rows[kept], found.ravel()])
        order = np.lexsort((rows, q, -scores))[:count]
        scores, q, rows = scores[order], q[order], rows[order]
        # Further rows of a query matter only if all its k rows are among the best.
        last = of_query[:, -1]
        more = (last > scores[-1]) | (last == scores[-1]) & (wanted <= q[-1])
        wanted, k = wanted[more & (k < len(database))], min(4 * k, len(database))
    return scores, q, rows


def similarities(queries: np.ndarray, database: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield all scores by blocks of queries: (slice of queries, scores [q,N] float32).

    queries, database: as for `top_k`
    A score is the float64 inner product rounded to float32: equal rows tie at any position.
    Raises ValueError for unequal D or non-finite descriptors.
    """
    largest = check_descriptors(queries, database)
    # The caller still holds the previous block.
    at_once = max(1, min(QUERIES_AT_ONCE, MEMORY // (12 * max(1, len(database)))))
    return (
        (part, all_scores(as_float32(queries[part]), database, largest))
        for part in slices(len(queries), at_once)
    )


def best_rows(
    queries: np.ndarray,
    wanted: np.ndarray,
    database: np.ndarray,
    k: int,
    largest: float,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `top_k` of the queries at positions `wanted` [q]; largest: maximal norm of the database."""
    scores, indices = np.empty((len(wanted), k), np.float32), np.empty((len(wanted), k), np.int64)
    undecided, kept = np.arange(len(wanted)), min(k + MARGIN, len(database))
    while len(undecided):
        at_once = max(1, min(QUERIES_AT_ONCE, MEMORY // 2 // (CANDIDATE_BYTES * kept)))
        left = []
        for part in slices(len(undecided), at_once):
            q = undecided[part]
            chunk = as_float32(queries[wanted[q]])
            border, rows = candidates(chunk, database, kept, device)
            exact, rows = ranked(chunk, database, rows, largest)
            scores[q], indices[q] = exact[:, :k], rows[:, :k]
            # All other rows score at most `border` in float32.
            unsure = exact[:, k - 1] <= border + rounding_error(chunk, largest)
            left.append(q[unsure & (kept < len(database))])
        undecided, kept = np.concatenate(left), min(8 * kept, len(database))
    return scores, indices


def candidates(
    queries: np.ndarray, database: np.ndarray, kept: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest score [q] and the rows [q,kept] of the `kept` best rows per query, in float32."""
    count, dim = database.shape
    block = max(1, MEMORY // 2 // (8 * dim + 16 * len(queries)))
    if device.type == "cpu" and is_plain(database):
        block = count  # faiss splits it itself, without copies
    best, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for part in slices(count, block):
        chunk = as_float32(database[part])
        if device.type == "cpu":
            new, found = faiss.knn(queries, chunk, min(kept, len(chunk)), faiss.METRIC_INNER_PRODUCT)
        else:
            new, found = torch_knn(queries, chunk, min(kept, len(chunk)), device)
        best, rows = np.concatenate([best, new], 1), np.concatenate([rows, part.start + found], 1)
        if best.shape[1] > kept:
            chosen = np.argpartition(best, -kept, axis=1)[:, -kept:]
            best, rows = np.take_along_axis(best, chosen, 1), np.take_along_axis(rows, chosen, 1)
    return best.min(1), rows


def torch_knn(queries: np.ndarray, rows: np.ndarray, k: int, device: torch.device) -> tuple:
    """`faiss.knn` on a device: (scores, rows) [q,k] each, in float32 without TF32 and autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            scores = torch.tensor(queries, device=device) @ torch.tensor(rows, device=device).T  # [q,n]
    finally:
        torch.set_float32_matmul_precision(before)
    return tuple(column.cpu().numpy() for column in scores.topk(k, sorted=False))


def ranked(
    queries: np.ndarray, database: np.ndarray, rows: np.ndarray, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [q,k] float64, descending, and rows [q,k], ties by index.

    Scores are those of a matrix product, or `inner_products` where order or rounding is ambiguous.
    """
    scores = multiplied(queries, database, rows)
    order = np.argsort(-scores, axis=1)
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    error = summation_error(queries, largest)
    close = scores[:, :-1] - scores[:, 1:] <= 2 * error
    unsure = rounds_apart(scores, error)
    unsure[:, 1:] |= close
    unsure[:, :-1] |= close
    q, at = np.nonzero(unsure)
    scores[q, at] = inner_products(queries, database, q, rows[q, at])
    again = np.unique(q)
    order = np.lexsort((rows[again], -scores[again]))
    scores[again] = np.take_along_axis(scores[again], order, 1)
    rows[again] = np.take_along_axis(rows[again], order, 1)
    return scores, rows


def multiplied(queries: np.ndarray, database: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return float64 scores [q,k] of each query and its rows [q,k], summed in any order."""
    doubled, scores = queries.astype(np.float64)[:, :, None], np.empty(rows.shape)
    threads = torch.get_num_threads()
    most = max(1, min(BATCH_BYTES, MEMORY // (4 * threads)) // (12 * queries.shape[1]))  # pairs at a time
    at_once = max(1, most // rows.shape[1])

    def multiply(part: slice) -> None:
        for q in slices(part.stop, at_once, start=part.start):
            for some in slices(rows.shape[1], most):
                chunk = as_float32(database[rows[q, some]]).astype(np.float64)  # [q,k,D]
                scores[q, some] = (chunk @ doubled[q])[:, :, 0]

    if len(rows) < FEWEST_BATCHES * at_once * threads:  # the threads' start would take longer
        multiply(slice(0, len(rows)))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(multiply, slices(len(rows), -(-len(rows) // (4 * threads)))))
    return scores


def inner_products(queries: np.ndarray, database: np.ndarray, q: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return float64 scores [m] of the pairs (queries[q[i]], database[rows[i]]), q ascending.

    NumPy sums each contiguous row in an order that depends on D alone, unlike a matrix product.
    """
    exact = np.empty(len(q))
    starts = np.searchsorted(q, np.arange(len(queries) + 1))
    at_once = max(1, CACHED_BYTES // (12 * queries.shape[1]))
    for i in np.flatnonzero(np.diff(starts)):
        query = queries[i].astype(np.float64)
        for part in slices(starts[i + 1], at_once, start=starts[i]):
            products = as_float32(database[rows[part]]).astype(np.float64)
            products *= query
            exact[part] = products.sum(1)
    return exact


def all_scores(queries: np.ndarray, database: np.ndarray, largest: float) -> np.ndarray:
    """Return scores [q,N] by a float64 matrix product, or `inner_products` where rounding is ambiguous."""
    doubled = queries.astype(np.float64)
    error = summation_error(queries, largest)
    scores = np.empty((len(queries), len(database)), np.float32)
    block = max(1, MEMORY // 4 // (8 * queries.shape[1] + SCORE_BYTES * len(queries)))
    for rows in slices(len(database), block):
        exact = doubled @ as_float32(database[rows]).T.astype(np.float64)  # [q,n]
        scores[:, rows] = exact
        q, row = np.nonzero(rounds_apart(exact, error))
        scores[q, rows.start + row] = inner_products(queries, database, q, rows.start + row)
    return scores


def rounds_apart(scores: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Whether scores within the error [q,1] of these [q,n] may differ in float32."""
    return (scores - error).astype(np.float32) != (scores + error).astype(np.float32)


def summation_error(queries: np.ndarray, largest: float) -> np.ndarray:
    """Bound the difference [q,1] of float64 scores that are summed in two orders."""
    return 2 * rounding_error(queries, largest, unit=2.0**-53)[:, None]


def rounding_error(queries: np.ndarray, largest: float, *, unit: float = 2.0**-24) -> np.ndarray:
    """Bound the error of scores [Q] with rows of norm `largest`, for any order of summation.

    unit: half the spacing of floats at 1
    The bound is γ|q||x| with γ = D unit / (1 - D unit) (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1), plus the underflow.
    """
    dim, norm = queries.shape[1], norms(queries)
    gamma = 1.01 * dim * unit / (1 - dim * unit)
    return gamma * norm * largest + 2 * dim * SMALLEST * (1 + norm + largest)


def check_descriptors(queries: np.ndarray, database: np.ndarray) -> float:
    """Return the largest norm of the database; raise ValueError unless both are finite [*,D]."""
    if queries.ndim != 2 or queries.shape[1:] != database.shape[1:] or not queries.shape[1]:
        raise ValueError(f"queries {queries.shape} and database {database.shape} must be [Q,D] and [N,D]")
    largest_norm(queries, "queries")
    return largest_norm(database, "database")


def largest_norm(rows: np.ndarray, name: str) -> float:
    """Return an upper bound on the norms of rows [N,D]; raise ValueError for rows that cannot be searched."""
    if not np.can_cast(rows.dtype, np.float32, casting="same_kind"):
        raise ValueError(f"descriptors of the {name} must be float32, got {rows.dtype}")
    largest = 0.0
    # Rows that are read where they lie have only their norms in memory, at most 32 bytes each.
    at_once = MEMORY // 32 if is_plain(rows) else CACHED_BYTES // (4 * rows.shape[1])
    for part in slices(len(rows), max(1, at_once)):
        chunk = as_float32(rows[part])
        of_part = norms(chunk)
        if not np.isfinite(of_part).all():
            large = np.flatnonzero(~np.isfinite(of_part))
            bad = part.start + large[~np.isfinite(chunk[large]).all(1)]
            if len(bad):
                raise ValueError(f"descriptors of the {name} are not finite, the first in row {bad[0]}")
            raise ValueError(f"descriptors of the {name} have norms above 1e19: normalise them")
        largest = max(largest, of_part.max())
    return float(largest)


def norms(rows: np.ndarray) -> np.ndarray:
    """Return tight upper bounds [N] float64 on the norms of float32 rows; infinite above 1.8e19."""
    dim, squares = rows.shape[1], np.empty(len(rows), np.float32)
    faiss.fvec_norms_L2sqr(faiss.swig_ptr(squares), faiss.swig_ptr(rows), dim, len(rows))
    return np.sqrt(squares * (1 + 2.0**-22 * dim) + dim * SMALLEST, dtype=np.float64)


def is_plain(rows: np.ndarray) -> bool:
    """Whether faiss reads the rows where they lie, without a copy."""
    return rows.dtype == np.float32 and rows.flags.c_contiguous


def as_float32(rows: np.ndarray) -> np.ndarray:
    """Convert rows to contiguous float32, without a copy if they are."""
    with np.errstate(over="ignore"):  # infinite values are refused by `largest_norm`
        return np.ascontiguousarray(rows, np.float32)


def slices(stop: int, size: int, *, start: int = 0) -> Iterator[slice]:
    """Split the range from start to stop into slices of at most `size`."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
