"""Pairs of pictures that are near-duplicates, of two grades."""

from dataclasses import dataclass

import numpy as np

from mgkit.photos.comparisons import Comparisons
from mgkit.photos.copies.small import UNDONE
from mgkit.photos.copies.thresholds import Thresholds

SAME_FILE = 1  # one was made from the other: compressed, resized, cropped, turned, retouched
SAME_MOMENT = 2  # another frame of what the other shows
GRADES = {SAME_FILE: "the same file, edited", SAME_MOMENT: "the same moment"}
MOST_COMPARED = 6  # nearest neighbours of a picture that are laid over it
COSINES_AT_ONCE = 4096
ANOTHER_TIME = 1.0  # s between two photographs, or as little as this where both times have fractions:
ANOTHER_FRACTION = 0.01


@dataclass(frozen=True)
class Pairs:
    """P pairs of near-duplicates, by the indices of the pictures.

    first, second: [P] int64, first < second.
    similarity: cosine of the descriptors [P].
    alignment: correlation of the two pictures where one is laid over the other [P]; NaN for plain pictures
        and those that were not compared.
    turn: of the rotation tag that would turn the second as the first is [P], 1 to 8.
    grade: SAME_FILE or SAME_MOMENT [P].
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    alignment: np.ndarray
    turn: np.ndarray
    grade: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def at(self, which: np.ndarray) -> "Pairs":
        """Those of a mask or of indices."""
        return Pairs(*(column[which] for column in vars(self).values()))


def find_pairs(
    descriptors: np.ndarray,
    near: np.ndarray,
    comparisons: Comparisons,
    thresholds: Thresholds,
    *,
    own: int | None = None,
    taken: np.ndarray | None = None,
) -> Pairs:
    """The near-duplicates among N pictures, each pair once.

    descriptors: L2-normalised ([N,D]); NaN for pictures that take no part.
    near: candidates by their descriptors ([P,3]), see `nearby`.
    comparisons: of the pictures.
    own: only pairs of one of the first `own` pictures and one of the others; None: all.
    taken: when each was photographed ([N], s); NaN or None: not known.

    Pictures whose alignment reaches the first threshold are the same file; others of which the similarity
    reaches the second one show the same moment. So do those that fit but were taken at different times,
    as by a camera that stood still.
    """
    candidates = each_once(np.concatenate([near, comparisons.look_alikes(own)]))
    candidates = candidates[np.isfinite(descriptors[candidates[:, :2], 0]).all(1)]
    if own is not None:
        candidates = candidates[(candidates[:, 0] < own) & (candidates[:, 1] >= own)]
    alignment, compared = np.full(len(candidates), np.nan, np.float32), candidates[:, 2] > 0
    alignment[compared] = comparisons.aligned(candidates[compared])
    candidates, alignment = best_turn(candidates, alignment)
    first, second, turn = candidates.T
    similarity = cosines(descriptors, first, second)
    same_file = alignment >= thresholds.file.value  # not for NaN
    found = same_file | (similarity >= thresholds.moment.value)
    if taken is not None:
        apart, exact = np.abs(taken[first] - taken[second]), (taken % 1 > 0)[first] & (taken % 1 > 0)[second]
        same_file &= ~(apart >= np.where(exact, ANOTHER_FRACTION, ANOTHER_TIME))  # not for NaN
    grade = np.where(same_file, SAME_FILE, SAME_MOMENT)
    return Pairs(*(each[found] for each in (first, second, similarity, alignment, turn.clip(min=1), grade)))


def nearby(scores: np.ndarray, nearest: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Candidates (picture, neighbour, turn) [P,3] by similarities and indices of neighbours [n,k].

    The turn is 1 for those that are to be laid over each other, 0 for the others.
    """
    compared = np.arange(scores.shape[1]) < MOST_COMPARED
    near = (scores >= thresholds.moment.value) | ((scores >= thresholds.floor) & compared)
    picture, column = np.nonzero(near & np.isfinite(scores))
    return np.stack([picture, nearest[picture, column], compared[column]], 1)


def each_once(candidates: np.ndarray) -> np.ndarray:
    """Candidates [P,3] without repetitions, the first index less than the second; turns are turned about."""
    i, j, turn = candidates.T
    undone = np.array([0, *UNDONE.values()])[turn]
    ordered = np.where((i < j)[:, None], candidates, np.stack([j, i, undone], 1))
    return np.unique(ordered, axis=0)


def best_turn(candidates: np.ndarray, alignment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of candidates [P,3] once, with the turn of the largest alignment [P]."""
    first, second, turn = candidates.T
    order = np.lexsort((turn, -np.nan_to_num(alignment, nan=-1), second, first))
    candidates, alignment = candidates[order], alignment[order]
    new = np.ones(len(candidates), bool)
    new[1:] = (candidates[1:, :2] != candidates[:-1, :2]).any(1)
    return candidates[new], alignment[new]


def cosines(descriptors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Similarities [P] of pairs, at most 1."""
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), COSINES_AT_ONCE):
        part = slice(start, start + COSINES_AT_ONCE)
        found[part] = (descriptors[first[part]] * descriptors[second[part]]).sum(1)
    return found.clip(max=1)
