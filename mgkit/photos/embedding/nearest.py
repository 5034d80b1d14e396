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
    k = min(NEIGHBOURS + 1, len(descriptors))
    factory = config.index or (LARGE_INDEX if len(descriptors) > MOST_EXACT else "")
    if factory:
        print(f"{len(descriptors):,} pictures: approximate search by {factory}, which may miss a few")
        found = indices.search_index(indices.build_index(factory, descriptors), descriptors, k=k)
    else:
        found = top_k(descriptors, descriptors, k=k)
    return neighbours_without_self(*found)


def neighbours_without_self(scores: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [N,k+1] of images among themselves -> [N,k], without the image itself.

    Without the last instead, where the image is not among them: it may have more than k identical ones.
    """
    itself = indices == np.arange(len(indices))[:, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(indices, order, 1)
