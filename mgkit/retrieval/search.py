"""Nearest neighbours among descriptors: exact, in bounded memory, whatever the size of the database.

Every function answers as if all inner products had been computed in float64 by `inner_products` and sorted. Products in float32, a
block at a time, find the few pairs that matter; a bound on their rounding error says which; float64 decides between those.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mgkit.machine.device import pick_device

MEMORY = 256 * 2**20
QUERIES_AT_ONCE, ROWS_AT_ONCE = 1024, 8192  # where products of matrices are at full speed
MARGIN = 32  # candidates beyond k; a gap in the scores among them proves that the first k are right
EXACT_BYTES = 2**21  # of rows in float64 at a time: they stay in the cache
# What takes memory, at most, with copies on the way: a score of a block, a candidate, a score that has to be looked at.
PAIR_BYTES, KEPT_BYTES, SETTLED_BYTES = 28, 160, 128
SMALLEST = 2.0**-126  # of float32: what is below may count as zero


def top_k(
    queries: np.ndarray,
    database: np.ndarray,
    *,
    k: int,
    memory: int = MEMORY,
    device: torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of the database for each query, by inner product (cosine, for L2-normalised rows).

    queries [Q,D], database [N,D]: float32, or what converts to it; either may be a memory-mapped file, which is read in blocks.
    memory: bytes of temporary arrays, on host and device each, 4 MiB at least, and as far as one query can be done with them; the
    result comes on top. device: of the products, None for the GPU if there is one. Returns scores [Q,k] float32 and indices [Q,k] int64, best
    first, equal scores by rising index: those of float64, so that equal rows tie wherever they stand.
    Raises ValueError for k > N, another D, or descriptors that are not finite.
    """
    norms, largest = check_descriptors(queries, database)
    count, dim = database.shape
    if not 1 <= k <= count:
        raise ValueError(f"k must lie between 1 and the {count} images of the database, got {k}")
    device = device or pick_device()
    kept = min(k + MARGIN, count)
    at_once, block = block_sizes(
        queries, database, max(memory, 2 * EXACT_BYTES) - EXACT_BYTES, PAIR_BYTES, kept * KEPT_BYTES
    )
    scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    for part in slices(len(queries), at_once):
        some = as_float32(queries[part])
        error = rounding_error(dim, norms[part], largest)
        border, candidates = screen(some, database, kept, block, device)
        exact, candidates = rank(some, database, candidates, k)
        # What was left out scores at most border in float32: below the k-th, unless their gap is within the error.
        unsure = exact[:, -1] <= border + error if kept < count else np.zeros(len(some), bool)
        if unsure.any():
            floor = exact[unsure, -1] - error[unsure]
            smaller = max(1, block * PAIR_BYTES // SETTLED_BYTES)
            exact[unsure], candidates[unsure] = settle(some[unsure], database, floor, k, smaller, device)
        scores[part], indices[part] = exact, candidates
    return scores, indices


def top_pairs(
    queries: np.ndarray,
    database: np.ndarray,
    *,
    count: int,
    bias: np.ndarray | None = None,
    memory: int = MEMORY,
    device: torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` most similar of all Q·N pairs of a query and a row, pooled; all of them where there are no more.

    queries [Q,D], database [N,D], device: as for `top_k`. bias [Q]: subtracted from all scores of a query, to make those of
    different queries comparable. memory: bytes for blocks of products, beside some multiple of the result. Returns scores [R]
    float32, falling, and the rows [R] of queries and [R] of the database, int64; equal scores by query, then row.
    Raises ValueError for another D, numbers that are not finite, a bias of another shape, or a count below 1.
    """
    norms, largest = check_descriptors(queries, database)
    bias = np.zeros(len(queries)) if bias is None else np.asarray(bias, np.float64)
    if bias.shape != (len(queries),) or not np.isfinite(bias).all():
        raise ValueError(f"bias must hold {len(queries)} finite numbers, one a query, got shape {bias.shape}")
    if count < 1:
        raise ValueError(f"count must be at least 1 pair, got {count}")
    device = device or pick_device()
    at_once, block = block_sizes(queries, database, max(memory, 2 * EXACT_BYTES) - EXACT_BYTES, SETTLED_BYTES)
    # Of float32 products and of rounding a score to float32 in the end.
    error = rounding_error(database.shape[1], norms, largest) + 2.0**-23 * (norms * largest + np.abs(bias))
    best = (np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
    pending, threshold = [], -np.inf
    for part in slices(len(queries), at_once):
        some = as_float32(queries[part])
        for start, scores in float32_scores(some, database, block, device):
            q, rows = reaching(scores, threshold + bias[part] - error[part])
            if len(q) > count:  # the count-th best lower bound: no pair below it can be among the best
                approximate = values(scores, q, rows) - bias[part][q]
                lower = np.partition(approximate - error[part][q], -count)[-count]
                threshold = max(threshold, lower)
                near = approximate + error[part][q] >= threshold
                q, rows = q[near], rows[near]
            exact = inner_products(some, database, q, start + rows) - bias[part][q]
            pending.append((exact.astype(np.float32), part.start + q, start + rows))
            if sum(len(new[0]) for new in pending) >= count:
                best, pending = best_pairs([best, *pending], count), []
                threshold = max(threshold, best[0][-1])
    return best_pairs([best, *pending], count)


def similarities(
    queries: np.ndarray, database: np.ndarray, *, memory: int = MEMORY
) -> Iterator[tuple[slice, np.ndarray]]:
    """All scores of all queries, a block of queries at a time: (which queries, scores [q,N] float32).

    queries [Q,D], database [N,D]: as for `top_k`. memory: bytes of arrays at a time, as far as one query can be done with
    them. A score is the float64 inner product, rounded to float32: equal rows tie wherever they stand, in whatever order.
    Raises ValueError for another D or descriptors that are not finite.
    """
    norms, largest = check_descriptors(queries, database)
    return all_scores(queries, database, norms, largest, memory)


# --- What float64 says


def inner_products(queries: np.ndarray, database: np.ndarray, q: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Float64 scores [m] of the pairs (queries[q[i]], database[rows[i]]), q rising.

    NumPy adds up every contiguous row by itself, in an order that depends on D alone; products of matrices do not.
    """
    exact = np.empty(len(q))
    starts = np.searchsorted(q, np.arange(len(queries) + 1))
    at_once = max(1, EXACT_BYTES // (12 * database.shape[1]))
    for i in np.flatnonzero(np.diff(starts)):
        query = as_float64(queries[i])
        for part in slices(starts[i + 1], at_once, start=starts[i]):
            exact[part] = (as_float32(database[rows[part]]) * query).sum(1)
    return exact


def rank(queries: np.ndarray, database: np.ndarray, candidates: np.ndarray, k: int) -> tuple:
    """The best k of the candidates [q,kept] by float64 scores: (scores, rows), [q,k] each, ties by row."""
    kept = candidates.shape[1]
    q = np.repeat(np.arange(len(queries)), kept)
    exact = inner_products(queries, database, q, candidates.ravel()).reshape(-1, kept)
    order = np.lexsort((candidates, -exact))[:, :k]
    return np.take_along_axis(exact, order, 1), np.take_along_axis(candidates, order, 1)


def best_pairs(pairs: list[tuple], count: int) -> tuple:
    """The best `count` of pairs in several parts, each (scores, queries, rows)."""
    scores, q, rows = (np.concatenate(column) for column in zip(*pairs, strict=True))
    order = np.lexsort((rows, q, -scores))[:count]
    return scores[order], q[order], rows[order]


def all_scores(queries: np.ndarray, database: np.ndarray, norms: np.ndarray, largest: float, memory: int):
    """What `similarities` yields: float64 products of matrices, and `inner_products` where those leave the rounding open."""
    count, dim = database.shape
    # 8 bytes a score: while a block is made, the reader holds the one before.
    at_once = max(1, min(len(queries), QUERIES_AT_ONCE, memory // (12 * max(1, count))))
    block = max(1, min(count, ROWS_AT_ONCE, memory // 4 // (8 * dim + SETTLED_BYTES * at_once)))
    for part in slices(len(queries), at_once):
        some = as_float32(queries[part])
        doubled = as_float64(some)
        error = 2 * rounding_error(dim, norms[part], largest, unit=2.0**-53)[:, None]  # of both ways to sum
        scores = np.empty((len(some), count), np.float32)
        for rows in slices(count, block):
            exact = doubled @ as_float64(database[rows]).T  # [q,n]
            scores[:, rows] = exact
            q, open_rows = np.nonzero(
                (exact - error).astype(np.float32) != (exact + error).astype(np.float32)
            )
            scores[q, rows.start + open_rows] = inner_products(some, database, q, rows.start + open_rows)
        yield part, scores


# --- What float32 finds


def screen(queries: np.ndarray, database: np.ndarray, kept: int, block: int, device: torch.device) -> tuple:
    """The `kept` best rows of each query by float32 scores: (their lowest score [q], the rows [q,kept])."""
    best, where = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    lowest = None  # of the best, once there are enough of them
    for start, scores in float32_scores(queries, database, block, device):
        new, rows = highest(scores, kept) if lowest is None else better(scores, lowest, kept)
        best, where = np.concatenate([best, new], 1), np.concatenate([where, start + rows], 1)
        width, at_end = best.shape[1], start + scores.shape[1] == len(database)
        if width > 2 * kept or width >= kept and (lowest is None or at_end):
            chosen = np.argpartition(best, -kept, axis=1)[:, -kept:]
            best, where = np.take_along_axis(best, chosen, 1), np.take_along_axis(where, chosen, 1)
            lowest = best.min(1)
    return lowest, where


def highest(scores: Tensor, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `kept` of each row of scores, or all: (scores, columns), [q,w] each."""
    best, where = scores.topk(min(kept, scores.shape[1]), sorted=False)
    return best.cpu().numpy(), where.cpu().numpy()


def better(scores: Tensor, lowest: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Like `highest`, but only what exceeds `lowest` [q], filled up with -inf: soon that is a handful a query."""
    count, columns = scores.shape
    found = above(scores, lowest)
    if len(found) > count * columns // 8:
        return highest(scores, kept)
    q = found // columns
    counts = np.bincount(q, minlength=count)
    if (width := counts.max()) > max(kept, columns // 8):
        return highest(scores, kept)
    place = np.arange(len(q)) - (np.cumsum(counts) - counts)[q]  # among those of its query
    best, where = np.full((count, width), -np.inf, np.float32), np.zeros((count, width), np.int64)
    where[q, place] = found - q * columns
    best[q, place] = values(scores, q, where[q, place])
    return best, where


def settle(queries: np.ndarray, database: np.ndarray, floor: np.ndarray, k: int, block: int, device) -> tuple:
    """The best k of all rows that reach floor [q] in float32, by float64 scores: (scores, rows), [q,k] each."""
    best = (np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    for start, scores in float32_scores(queries, database, block, device):
        q, rows = reaching(scores, floor)
        exact = inner_products(queries, database, q, start + rows)
        found = zip(best, (exact, q, start + rows), strict=True)
        exact, q, rows = (np.concatenate(column) for column in found)
        order = np.lexsort((rows, -exact, q))
        place = np.arange(len(q)) - np.searchsorted(q[order], q[order])  # among those of its query
        best = tuple(column[order[place < k]] for column in (exact, q, rows))
    return best[0].reshape(-1, k), best[2].reshape(-1, k)


def above(scores: Tensor, floor: np.ndarray) -> np.ndarray:
    """Where scores [q,n] exceed floor [q] float32: positions [m] in the flattened scores, rising."""
    if scores.device.type == "cpu":  # NumPy finds few among many ten times as fast as torch
        return np.flatnonzero(scores.numpy() > floor[:, None])
    hits = scores > torch.from_numpy(floor).to(scores.device)[:, None]
    return hits.flatten().nonzero()[:, 0].cpu().numpy()


def values(scores: Tensor, q: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some of the scores, float32, on the host."""
    return (
        scores[torch.from_numpy(q).to(scores.device), torch.from_numpy(columns).to(scores.device)]
        .cpu()
        .numpy()
    )


def reaching(scores: Tensor, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and columns, [m] each, where scores [q,n] are at least floor [q] float64."""
    below = np.nextafter(floor.astype(np.float32), np.float32(-np.inf))
    return np.divmod(above(scores, below), scores.shape[1])


def float32_scores(
    queries: np.ndarray, database: np.ndarray, block: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """The scores of a block of rows after the other: (its first row, scores [q,n] float32 on the device, overwritten by the next)."""
    buffer = torch.empty(len(queries), min(block, len(database)), device=device)
    on_device = torch.from_numpy(queries).to(device) if device.type != "cpu" else None
    for part in slices(len(database), block):
        rows = as_float32(database[part])
        scores = buffer[:, : len(rows)]
        if on_device is None:
            np.matmul(
                queries, rows.T, out=scores.numpy()
            )  # NumPy's BLAS: never bf16, and takes read-only files
        else:
            with plain_float32(device):
                torch.mm(on_device, torch.from_numpy(rows.copy()).to(device).T, out=scores)
        yield part.start, scores


@contextmanager
def plain_float32(device: torch.device):
    """Products in float32 as the error bound assumes: no TF32, no autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def rounding_error(dim: int, norms: np.ndarray, largest: float, *, unit: float = 2.0**-24) -> np.ndarray:
    """What products in floating point can be off [Q], summed in whatever order; unit: half the spacing of numbers at 1.

    γ|q||x| with γ = D unit / (1 - D unit) (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and what
    numbers too small for float32 add.
    """
    gamma = dim * unit / (1 - dim * unit)
    return 1.01 * gamma * norms * largest + 2 * dim * SMALLEST * (1 + norms + largest)


# --- Descriptors as they come


def check_descriptors(queries: np.ndarray, database: np.ndarray) -> tuple[np.ndarray, float]:
    """The norms [Q] of the queries, and the largest one of the database.

    Raises ValueError unless both are [*,D] arrays of one D, finite, and small enough for products in float32.
    """
    if (
        queries.ndim != 2
        or database.ndim != 2
        or queries.shape[1] != database.shape[1]
        or not queries.shape[1]
    ):
        raise ValueError(
            f"queries {queries.shape} and database {database.shape} must be [Q,D] and [N,D] of one D"
        )
    norms = np.concatenate([np.empty(0), *row_norms(queries, "queries")])
    return norms, float(max((part.max() for part in row_norms(database, "database")), default=0.0))


def row_norms(rows: np.ndarray, name: str) -> Iterator[np.ndarray]:
    """The norms of the rows, or a little more, in blocks; ValueError, with `name`, for rows that cannot be searched."""
    if not np.can_cast(rows.dtype, np.float32, casting="same_kind"):
        raise ValueError(f"descriptors of the {name} must be float32, got {rows.dtype}")
    dim = rows.shape[1]
    for part in blocks(rows):
        squares = np.einsum("nd,nd->n", part, part)
        if not np.isfinite(squares).all():
            refuse(rows, name)
        yield np.sqrt(squares * (1 + 2.0**-22 * dim) + dim * SMALLEST, dtype=np.float64)


def refuse(rows: np.ndarray, name: str) -> None:
    """Say which rows are not finite, or else that the largest are too large."""
    bad = np.concatenate([~np.isfinite(part).all(axis=1) for part in blocks(rows)]).nonzero()[0]
    if len(bad):
        raise ValueError(f"{len(bad)} descriptors of the {name} are not finite, the first in row {bad[0]}")
    raise ValueError(
        f"descriptors of the {name} have norms above 1e19, too large for float32: normalise them"
    )


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows [N,D] as float32, a few at a time."""
    for part in slices(len(rows), max(1, EXACT_BYTES // (8 * rows.shape[1]))):
        yield as_float32(rows[part])


def as_float32(rows: np.ndarray) -> np.ndarray:
    """Contiguous float32 rows: those given, where they are."""
    with np.errstate(over="ignore"):  # becomes infinite, which is refused by name
        return np.ascontiguousarray(rows, np.float32)


def as_float64(rows: np.ndarray) -> np.ndarray:
    """Rows as float32 would hold them, in float64."""
    return as_float32(rows).astype(np.float64)


def block_sizes(
    queries: np.ndarray, database: np.ndarray, memory: int, pair_bytes: int, query_bytes: int = 0
) -> tuple[int, int]:
    """How many queries and rows to multiply at a time, so that they take `memory` bytes: pair_bytes for every score."""
    (count, dim), rows = queries.shape, len(database)

    # Many candidates want large blocks: a block costs about as much as all candidates so far.
    most = min(rows, max(ROWS_AT_ONCE, query_bytes // KEPT_BYTES))
    q = min(QUERIES_AT_ONCE, max(1, count))
    while True:
        n = (memory - q * (query_bytes + 4 * dim)) // (q * pair_bytes + 4 * dim)
        if q == 1 or n >= min(most, max(q, query_bytes // KEPT_BYTES)):
            return q, max(1, min(n, most))
        q = (q + 1) // 2


def slices(stop: int, size: int, *, start: int = 0) -> Iterator[slice]:
    """The range from start to stop in pieces of at most `size`."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
