"""Pictures that look like others that are turned or mirrored, or have bars: found without the network."""

import numpy as np

from mgkit.photos.copies.small import SIDEWAYS, TURNS
from mgkit.retrieval import indices
from mgkit.retrieval.search import top_k

SIDE = 16  # of the pictures that are compared (px)
FLATTEST = 8.0  # standard deviation (of 255) below which a picture is like too many others
ALIKE = 0.8  # correlation from which they are candidates
MOST = 4  # candidates of a picture and turn
MOST_EXACT = 20_000  # pictures up to which search is exact
LARGE_INDEX = "HNSW32"
QUERIES_AT_ONCE = 8192


def look_alikes(grey: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Candidates for copies [P,3] however turned: (query, picture, turn), each unequal pair once per turn.

    grey: small pictures of the collection ([N,64,64] uint8, may be memory-mapped).
    queries: indices of the pictures whose copies are wanted ([Q]).

    The second, turned as its rotation tag would, looks like the first.
    """
    rows, plain = low_resolution(grey)
    patterned, queries = np.flatnonzero(~plain), queries[~plain[queries]]
    if len(patterned) < 2 or not len(queries):
        return np.empty((0, 3), np.int64)
    search = searching(rows[patterned])
    found = []
    for turn, turned in TURNS.items():
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            asked = queries[start : start + QUERIES_AT_ONCE]
            back = turned(rows[asked].reshape(-1, SIDE, SIDE)).reshape(len(asked), -1)
            scores, nearest = search(np.ascontiguousarray(back))
            query, column = np.nonzero(scores >= ALIKE)
            i, j = asked[query], patterned[nearest[query, column]]
            # The query, turned, is like the other: the other, turned back, is like the query.
            found.append(np.stack([i, j, np.full(len(i), UNDONE[turn])], 1)[i != j])
    return np.concatenate(found)
