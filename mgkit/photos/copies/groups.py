"""Groups of near-duplicates."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mgkit.photos.copies.pairs import SAME_MOMENT


@dataclass(frozen=True)
class Group:
    """Near-duplicates of one grade.

    members: indices of the images.
    similarities: each one's similarity to the nearest of the others.
    grade: SAME_FILE or SAME_MOMENT.
    tightness: mean similarity of its pairs.
    turns: how each is turned relative to the one that is kept, 1 to 8 as in the rotation tag.
    kept: position in `members` of the one that is proposed to stay.
    reason: why that one, as text.
    """

    members: tuple[int, ...]
    similarities: tuple[float, ...]
    grade: int = SAME_MOMENT
    tightness: float = math.nan
    turns: tuple[int, ...] = ()
    kept: int = 0
    reason: str = ""

    @property
    def strongest(self) -> float:
        return max(self.similarities)


def near_duplicates(scores: np.ndarray, indices: np.ndarray, threshold: float) -> tuple[list[Group], int]:
    """Connected components of the pairs above the threshold, the strongest first, and the number of pairs.

    scores, indices: of the nearest neighbours ([N,k]); there may be more pairs (`pairs_beyond`).
    """
    i, column = np.nonzero(scores >= threshold)
    j, values = indices[i, column], scores[i, column]
    count = len(indices)
    pairs = {(min(a, b), max(a, b)) for a, b in zip(i.tolist(), j.tolist(), strict=True)}
    _, label = connected_components(coo_array((values, (i, j)), shape=(count, count)), directed=False)
    best = np.full(count, -np.inf)
    np.maximum.at(best, i, values)
    np.maximum.at(best, j, values)
    members = np.flatnonzero(best > -np.inf)
    by_label: dict[int, list[int]] = {}
    for image in members.tolist():
        by_label.setdefault(int(label[image]), []).append(image)
    groups = [Group(tuple(of), tuple(float(min(best[m], 1.0)) for m in of)) for of in by_label.values()]
    return sorted(groups, key=lambda group: (-group.strongest, group.members)), len(pairs)


def pairs_beyond(scores: np.ndarray, threshold: float) -> bool:
    """Whether all k neighbours of an image lie above the threshold, so that pairs may be missing."""
    count, k = scores.shape
    return 0 < k < count - 1 and bool((scores[:, -1] >= threshold).any())
