"""Pictures that look like others that are turned, mirrored, or have bars: found without the network."""

from collections.abc import Callable

import numpy as np
from torch.nn.functional import interpolate

from mgkit.photos.copies.small import TURNS, UNDONE, contrasts
from mgkit.retrieval import indices
from mgkit.retrieval.search import top_k

SIDE = 16  # of the pictures that are compared (px)
FLATTEST = 0.3  # contrast below which a picture is like too many others
# Correlation from which they are candidates: copies with bars have 0.9 or more (95 % of them), retouched ones
# 0.7, of 1,600 unrelated pictures 1 % have one of 0.62.
ALIKE = 0.6
MOST = 4  # candidates of a picture and turn
MOST_EXACT = 2_000  # pictures up to which search is exact
LARGE_INDEX = "HNSW32"
AT_ONCE = 4096

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def look_alikes(rows: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
    """Candidates for copies, however turned: (query, picture, turn) [P,3] int64.

    rows: of the collection, as by `low_resolution` ([N,256]).
    queries: indices of the pictures whose copies are wanted; None: all.

    The picture, turned as a rotation tag of that number would turn it, looks like the query.
    """
    patterned = np.flatnonzero(rows.any(1))
    queries = patterned if queries is None else queries[rows[queries].any(1)]
    if len(patterned) < 2 or not len(queries):
        return np.empty((0, 3), np.int64)
    search, found = searching(rows[patterned], k=min(MOST + 1, len(patterned))), []
    for turn, turned in TURNS.items():
        for start in range(0, len(queries), AT_ONCE):
            asked = queries[start : start + AT_ONCE]
            as_turned = turned(rows[asked].reshape(-1, SIDE, SIDE)).reshape(len(asked), -1)
            scores, nearest = search(np.ascontiguousarray(as_turned))
            query, column = np.nonzero(scores >= ALIKE)
            i, j = asked[query], patterned[nearest[query, column]]
            found.append(np.stack([i, j, np.full(len(i), UNDONE[turn])], 1)[i != j])
    return np.concatenate(found)


def best_turns(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The correlation of each row with its other, turned as fits best, and that turn; [m,256] -> [m], [m]."""
    squares = others.reshape(-1, SIDE, SIDE)
    all_turns = [(rows * turned(squares).reshape(rows.shape)).sum(1) for turned in TURNS.values()]
    return np.max(all_turns, axis=0), np.argmax(all_turns, axis=0) + 1


def low_resolution(grey: np.ndarray) -> np.ndarray:
    """Small grey pictures [N,64,64] uint8 -> rows [N,256] float32 whose products are correlations.

    Those of plain pictures are 0.
    """
    rows = np.empty((len(grey), SIDE * SIDE), np.float32)
    for start in range(0, len(grey), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        pixels = interpolate(contrasts(grey[part]), size=(SIDE, SIDE), mode="area").flatten(1)
        rows[part] = pixels - pixels.mean(1, keepdim=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows[lengths[:, 0] < FLATTEST * SIDE] = 0
    return rows / np.maximum(lengths, 1e-6)


def searching(rows: np.ndarray, k: int) -> Search:
    """A function queries [Q,256] -> correlations and positions [Q,k] of the rows most like each."""
    if len(rows) <= MOST_EXACT:
        return lambda queries: top_k(queries, rows, k=k)
    index = indices.build_index(LARGE_INDEX, rows)
    return lambda queries: indices.search_index(index, queries, k=k)
