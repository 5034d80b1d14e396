"""The nearest neighbours of pictures among themselves, by their descriptors."""

import numpy as np

from mgkit.config import PhotosConfig
from mgkit.retrieval import indices
from mgkit.retrieval.search import top_k

NEIGHBOURS = 32  # per picture, searched for near-duplicates
MOST_EXACT = 50_000  # pictures up to which search is exact
LARGE_INDEX = "HNSW32"


def neighbours(config: PhotosConfig, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices [n,k] of each picture's nearest others, for descriptors [n,D]; k <= 32."""
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
        return indices.search_index(indices.build_index(factory, descriptors), queries, k=k)
    return top_k(queries, descriptors, k=k)


def neighbours_without_self(scores: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [N,k+1] of images among themselves -> [N,k], without the image itself.

    Without the last instead, where the image is not among them: it may have more than k identical ones.
    """
    itself = indices == np.arange(len(indices))[:, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)
