"""The nearest neighbours of queries that may be images of the database themselves, as sparse matrices.

`own` [Q] holds the row of each query in the database, -1 for a query that is not in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from mgkit.retrieval.search import check_descriptors, top_k

Blocks = Iterator[tuple[slice, np.ndarray]]  # slices of queries with values [q,N]


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of Q queries, best first.

    scores, rows: similarities and rows of the database ([Q,k])
    found: False where a query has fewer than k neighbours ([Q,k])
    """

    scores: np.ndarray
    rows: np.ndarray
    found: np.ndarray

    def lists(
        self, k: int, count: int, *, values: np.ndarray | None = None, kept: np.ndarray | None = None
    ) -> sparse.csr_array:
        """Return the first k neighbours as a matrix [Q,count] of values [Q,k], else of 1."""
        found = (self.found if kept is None else self.found & kept)[:, :k]
        ends = np.concatenate([[0], np.cumsum(found.sum(1))])
        data = np.ones(ends[-1], np.float32) if values is None else values[:, :k][found]
        return sparse.csr_array((data, self.rows[:, :k][found], ends), shape=(len(found), count))


def nearest(queries: np.ndarray, database: np.ndarray, k: int, own: np.ndarray) -> Neighbours:
    """Return the k nearest rows of each query [Q,D], its own row apart."""
    scores, rows = top_k(queries, database, k=min(k + 1, len(database)) if (own >= 0).any() else k)
    found = rows != own[:, None]
    order = np.argsort(~found, axis=1, kind="stable")[:, :k]  # its own row last
    return Neighbours(*(np.take_along_axis(each, order, 1) for each in (scores, rows, found)))


def check(queries: np.ndarray, database: np.ndarray, own: np.ndarray | None, **numbers: int) -> np.ndarray:
    """Return own [Q], -1 where None; raise ValueError for what does not fit. numbers: of images, by name."""
    check_descriptors(queries, database)
    for name, number in numbers.items():
        if not 1 <= number <= len(database):
            images = f"the {len(database)} images of the database"
            raise ValueError(f"{name} must be between 1 and {images}, got {number}")
    if own is None:
        return np.full(len(queries), -1)
    own = np.asarray(own)
    if own.shape != (len(queries),) or not np.issubdtype(own.dtype, np.integer):
        raise ValueError(
            f"own must hold one row for each of {len(queries)} queries, got {own.dtype} {own.shape}"
        )
    if len(own) and not -1 <= own.min() <= own.max() < len(database):
        rows = f"-1 to {len(database) - 1}"
        raise ValueError(f"own must hold rows of the database, {rows}, got {own.min()} to {own.max()}")
    return own


def collected(blocks: Blocks, whole: np.ndarray) -> np.ndarray:
    """Write blocks into an array [Q,N], and return it."""
    for part, values in blocks:
        whole[part] = values
    return whole
