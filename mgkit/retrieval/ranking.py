"""How the images of a database rank for each query: by inner products, or by scores that come in blocks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mgkit.retrieval.search import similarities, top_k, top_pairs

Blocks = Iterator[tuple[slice, np.ndarray]]  # (slice of queries, scores [q,M])


@dataclass(frozen=True)
class InnerProducts:
    """Scores by inner products.

    queries, database: descriptors ([Q,D], [M,D])
    """

    queries: np.ndarray
    database: np.ndarray

    def blocks(self) -> Blocks:
        """Yield all scores, see `similarities`."""
        return similarities(self.queries, self.database)

    def pairs(self, count: int, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (scores, queries, rows) of the best pairs, see `top_pairs`."""
        return top_pairs(self.queries, self.database, count=count, bias=bias)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, rows) [S,k] of the best rows of some queries [S], see `top_k`."""
        return top_k(self.queries[queries], self.database, k=k)


@dataclass(frozen=True)
class BlockScores:
    """Scores of any kind, computed anew for each use, a block of queries at a time.

    scores: starts the iteration over blocks (slice of queries, scores [q,M], larger is better)
    """

    scores: Callable[[], Blocks]

    def blocks(self) -> Blocks:
        """Yield all scores."""
        return self.scores()

    def pairs(self, count: int, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (scores, queries, rows) of the `count` best pairs, best first; ties by query, then row.

        bias: subtracted from the scores of each query ([Q])
        """
        scores, q, rows = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        for part, block in self.scores():
            if bias is not None:
                block = block - bias[part, None]
            lowest = scores[-1] if len(scores) == count else -np.inf
            of_block, row = np.nonzero(block >= lowest)
            scores = np.concatenate([scores, block[of_block, row].astype(np.float32)])
            q, rows = np.concatenate([q, part.start + of_block]), np.concatenate([rows, row])
            best = np.lexsort((rows, q, -scores))[:count]
            scores, q, rows = scores[best], q[best], rows[best]
        return scores, q, rows

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, rows) [S,k] of the best rows of some queries [S], best first; ties by row."""
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for part, block in self.scores():
            for place in np.flatnonzero((queries >= part.start) & (queries < part.stop)):
                of_query = block[queries[place] - part.start]
                best = np.argsort(-of_query, kind="stable")[:k]
                scores[place], rows[place] = of_query[best], best
        return scores, rows


Ranking = InnerProducts | BlockScores
