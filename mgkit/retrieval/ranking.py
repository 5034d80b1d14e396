"""How the images of a database rank for each query: by inner products, or by scores of another kind."""

import math
from dataclasses import dataclass

import numpy as np

from mgkit.features import empty_rows
from mgkit.retrieval.neighbours import Blocks, collected
from mgkit.retrieval.rerank import (
    alpha_query_expansion,
    database_augmentation,
    diffusion_blocks,
    k_reciprocal_blocks,
)
from mgkit.retrieval.search import MEMORY, similarities, slices, top_k, top_pairs


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
        shape = len(self.queries), len(self.database)
        if math.prod(shape) <= count:  # all pairs: their scores as a product of matrices are the same, sooner
            return Scores.collected(self.blocks(), shape).pairs(count, bias)
        return top_pairs(self.queries, self.database, count=count, bias=bias)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, rows) [S,k] of the best rows of some queries [S], see `top_k`."""
        return top_k(self.queries[queries], self.database, k=k)


@dataclass(frozen=True)
class Scores:
    """Scores of another kind, larger for better rows.

    scores: of each query and row ([Q,M] float32)
    """

    scores: np.ndarray

    @classmethod
    def collected(cls, blocks: Blocks, shape: tuple[int, int], beside: np.ndarray | None = None) -> "Scores":
        """Collect blocks into scores [Q,M]; large ones go to a file, see `empty_rows`."""
        return cls(collected(blocks, empty_rows(shape, beside=beside)))

    def blocks(self) -> Blocks:
        """Yield all scores."""
        at_once = max(1, MEMORY // (4 * max(1, self.scores.shape[1])))
        return ((part, self.scores[part]) for part in slices(len(self.scores), at_once))

    def pairs(self, count: int, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (scores, queries, rows) of the `count` best pairs, best first; ties by query, then row.

        bias: subtracted from the scores of each query ([Q])
        """
        scores, q, rows = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        for part, block in self.blocks():
            if bias is not None:
                block = (block - bias[part, None]).astype(np.float32)
            lowest = scores[-1] if len(scores) == count else -np.inf
            of_block, row = np.nonzero(block >= lowest)
            scores = np.concatenate([scores, block[of_block, row]])
            q, rows = np.concatenate([q, part.start + of_block]), np.concatenate([rows, row])
            best = np.lexsort((rows, q, -scores))[:count]
            scores, q, rows = scores[best], q[best], rows[best]
        return scores, q, rows

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores, rows) [S,k] of the best rows of some queries [S], best first; ties by row."""
        rows = np.stack([np.argsort(-self.scores[q], kind="stable")[:k] for q in queries])
        return np.take_along_axis(self.scores[queries], rows, 1), rows


Ranking = InnerProducts | Scores


# --- After query expansion and re-ranking

ALPHA = 3.0  # of αQE, as in the paper
RERANKED = {  # name in a config: name of the kind
    "average_qe": "AQE", "alpha_qe": "αQE", "dba": "DBA", "k_reciprocal": "k-reciprocal",
    "diffusion": "diffusion",
}  # fmt: skip


def reranked(method: str, plain: InnerProducts, own: np.ndarray, *, k: int) -> Ranking:
    """Return the ranking by one of RERANKED.

    plain: the ranking before
    own: row of each query in the database ([Q], -1 if it is not in it)
    k: number of nearest images that are taken for answers. Query expansion and database augmentation average
    them. k-reciprocal re-ranking has k2 = k and k1 = 3 k, about its paper's ratio. For diffusion, each image
    has 3 k neighbours, and alpha = 1 - 1 / (k+1), so that the walk from a query visits about k images
    Other parameters are those of the papers. Fewer neighbours are taken where the database is small.
    """
    queries, database, count = plain.queries, plain.database, len(plain.database)
    if method in ("average_qe", "alpha_qe"):
        alpha = ALPHA if method == "alpha_qe" else 0.0
        expanded = alpha_query_expansion(queries, database, min(k, count), alpha, own=own)
        return InnerProducts(expanded, database)
    if method == "dba":
        return InnerProducts(queries, database_augmentation(database, min(k, count), ALPHA))
    shape = len(queries), count
    if method == "k_reciprocal":
        distances = k_reciprocal_blocks(queries, database, min(3 * k, count), min(k, count), own=own)
        return Scores.collected(((part, -block) for part, block in distances), shape, database)
    numbers = {"query_k": min(k, count), "alpha": 1 - 1 / (k + 1)}
    diffused = diffusion_blocks(queries, database, min(3 * k, count), **numbers, own=own)
    return Scores.collected(diffused, shape, database)
