"""The nearest neighbours of pictures among themselves, by their descriptors.

The lists of a folder are kept. When it has changed little they grow: new pictures search in all, all search
in the new ones, and those that lost a neighbour search again; exactly, whatever made the first lists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgkit.config import PhotosConfig
from mgkit.features import ROWS, rows_at
from mgkit.machine.progress import progress
from mgkit.photos.embedding.arrays import read_arrays, write_arrays
from mgkit.retrieval import indices
from mgkit.retrieval.search import slices, top_k

NEIGHBOURS = 32  # per picture, searched for near-duplicates
MOST_EXACT = 50_000  # pictures up to which search is exact
LARGE_INDEX = "HNSW32"
FEW = 0.2  # share of new and gone pictures up to which what was learned on a folder is kept
QUERIES = 4096  # searched at a time
ROUNDING = 1e-4  # of a similarity in float32, at most
SECONDS_WITHOUT_BAR = 3.0


@dataclass(frozen=True)
class Lists:
    """Lists of neighbours.

    keys: what the n pictures are known by ([n] uint64).
    scores, indices: of their neighbours ([n,k]), best first.
    """

    keys: np.ndarray
    scores: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True)
class KeptLists:
    """A file that keeps lists from one run to the next.

    path: of the file; it need not exist.
    made_of: what the descriptors depend on, as text.
    """

    path: Path
    made_of: str

    def read(self) -> Lists | None:
        """The lists; None if there are none, or if they are damaged or of other descriptors."""
        arrays = read_arrays(self.path, "keys", "scores", "indices", "made_of")
        if arrays is None:
            return None
        found, made_of = Lists(*arrays[:3]), str(arrays[3])
        shape = (len(found.keys), NEIGHBOURS)
        whole = found.keys.dtype == np.uint64 and found.scores.dtype == np.float32
        whole &= found.scores.shape == shape and found.indices.shape == shape
        whole = whole and found.indices.dtype == np.int32 and made_of == self.made_of
        return found if whole and ((found.indices >= 0) & (found.indices < shape[0])).all() else None

    def write(self, lists: Lists) -> None:
        values = vars(lists) | {"indices": lists.indices.astype(np.int32)}
        write_arrays(self.path, **values, made_of=np.array(self.made_of))


def changed(keys: np.ndarray, earlier: np.ndarray) -> float:
    """The number of new and of gone pictures, as a share of the earlier ones."""
    return len(np.setxor1d(keys, earlier)) / max(1, len(earlier))


def neighbours(
    config: PhotosConfig,
    descriptors: np.ndarray,
    keys: np.ndarray | None = None,
    kept: KeptLists | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices [n,k] of each picture's nearest others, for descriptors [n,D]; k <= 32.

    keys: what the pictures are known by ([n])
    kept: the lists of the last run, which are taken or grown, and written; None: all are searched
    """
    last = kept.read() if kept else None
    if last and np.array_equal(keys, last.keys):
        return last.scores, last.indices.astype(np.int64)
    if last and len(keys) > NEIGHBOURS and changed(keys, last.keys) <= FEW:
        found = grown(last, keys, descriptors)
    else:
        found = searched(config, descriptors)
    if kept and found[0].shape[1] == NEIGHBOURS and (found[1] >= 0).all():
        kept.write(Lists(keys, *found))
    return found


def searched(config: PhotosConfig, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`neighbours` by exact search, or by an index."""
    return neighbours_without_self(*found_in(config, descriptors, descriptors, NEIGHBOURS + 1))


def neighbours_elsewhere(
    config: PhotosConfig, descriptors: np.ndarray, own: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices [own,k] of the nearest of the first `own` pictures among the others."""
    if own in (0, len(descriptors)):
        return np.empty((own, 0), np.float32), np.empty((own, 0), np.int64)
    scores, indices = found_in(config, descriptors[:own], descriptors[own:], NEIGHBOURS)
    return scores, indices + own


def found_in(
    config: PhotosConfig, queries: np.ndarray, descriptors: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices [q,k] of the nearest descriptors [n,D] of each query [q,D]; k <= most."""
    k = min(most, len(descriptors))
    factory = config.index or (LARGE_INDEX if len(descriptors) > MOST_EXACT else "")
    if factory:
        print(f"{len(descriptors):,} pictures: approximate search by {factory}, which may miss a few")
        index = indices.build_index(factory, descriptors)
        return by_parts(lambda part: indices.search_index(index, part, k=k), queries, k)
    return by_parts(lambda part: top_k(part, descriptors, k=k), queries, k)


def by_parts(
    search: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices [q,k] of queries [q,D], part by part, with a bar if it takes a while."""
    scores, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    title = "nearest neighbours"
    with progress(None, title, total=len(queries), unit="pictures", delay=SECONDS_WITHOUT_BAR) as bar:
        for part in slices(len(queries), QUERIES):
            scores[part], found[part] = search(queries[part])
            bar.update(len(scores[part]))
    return scores, found


def grown(last: Lists, keys: np.ndarray, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lists of pictures [n], most of which are in the last ones; exact if those are."""
    _, here, there = np.intersect1d(keys, last.keys, return_indices=True)
    place = np.full(len(last.keys), -1)
    place[there] = here
    scores = np.full((len(keys), NEIGHBOURS), -np.inf, np.float32)
    found = np.full((len(keys), NEIGHBOURS), -1)
    scores[here], found[here] = last.scores[there], place[last.indices[there]]
    again = np.flatnonzero((found < 0).any(1))  # new ones, and those that lost a neighbour
    new = np.setdiff1d(np.arange(len(keys)), here)
    of_new = rows_at(descriptors, new)
    for part in slices(len(keys) if len(new) else 0, ROWS):
        products = descriptors[part] @ of_new.T  # [n,new]
        near = part.start + np.flatnonzero((products >= scores[part, -1:] - ROUNDING).any(1))
        if len(near):
            more, j = top_k(rows_at(descriptors, near), of_new, k=min(NEIGHBOURS, len(new)))
            scores[near], found[near] = best(scores[near], found[near], more, new[j])
    if len(again):
        k, of_again = NEIGHBOURS + 1, rows_at(descriptors, again)
        nearest = by_parts(lambda part: top_k(part, descriptors, k=k), of_again, k)
        scores[again], found[again] = neighbours_without_self(*nearest, again)
    return scores, found


def best(
    scores: np.ndarray, found: np.ndarray, more: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of lists [n,k] and further ones [n,m], ties by index."""
    scores, found = np.concatenate([scores, more], 1), np.concatenate([found, others], 1)
    order = np.lexsort((found, -scores), axis=1)[:, :NEIGHBOURS]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)


def neighbours_without_self(
    scores: np.ndarray, indices: np.ndarray, itself: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [N,k+1] of images among themselves -> [N,k], without the image itself.

    itself: index of each image ([N]), -1 for one that is not among them; None: they are all, in order

    Without the last instead, where the image is not among them: it may have more than k identical ones.
    """
    itself = np.arange(len(indices)) if itself is None else itself
    order = np.argsort(indices == itself[:, None], axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)
