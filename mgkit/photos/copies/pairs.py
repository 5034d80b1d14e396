"""Pairs of pictures that are near-duplicates, of two grades."""

from dataclasses import dataclass

import numpy as np

from mgkit.photos.copies.alignment import aligned
from mgkit.photos.copies.small import UNDONE
from mgkit.photos.copies.thresholds import Thresholds
from mgkit.photos.copies.turned import look_alikes, low_resolution

SAME_FILE = 1  # one was made from the other: compressed, resized, cropped, turned, retouched
SAME_MOMENT = 2  # another frame of what the other shows
GRADES = {SAME_FILE: "the same file, edited", SAME_MOMENT: "the same moment"}
MOST_COMPARED = 4  # neighbours of a picture that are compared though they show another moment
COSINES_AT_ONCE = 4096


@dataclass(frozen=True)
class Pairs:
    """P pairs of near-duplicates, by the indices of the pictures.

    first, second: [P] int64, first < second.
    similarity: cosine of the descriptors [P].
    alignment: correlation of the two pictures where one is laid over the other [P]; NaN for plain pictures.
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


def find_pairs(
    descriptors: np.ndarray,
    neighbours: tuple[np.ndarray, np.ndarray],
    looks: tuple[np.ndarray, np.ndarray],
    thresholds: Thresholds,
    *,
    queries: np.ndarray | None = None,
) -> Pairs:
    """The near-duplicates among N pictures, each pair once.

    descriptors: L2-normalised ([N,D]).
    neighbours: similarities and indices of each one's nearest ([N,k]).
    looks: small pictures and their width / height, as by `small` ([N,64,64], [N]).
    queries: indices of the pictures whose turned copies are wanted; None: all.

    Pictures whose alignment reaches the first threshold are the same file; others of which the similarity
    reaches the second one show the same moment.
    """
    grey, aspects = looks
    near = nearby(*neighbours, thresholds)
    candidates = each_once(np.concatenate([near, look_alikes(low_resolution(grey), queries)]))
    alignment = aligned(grey, aspects, candidates)
    candidates, alignment = best_turn(candidates, alignment)
    first, second, turn = candidates.T
    similarity = cosines(descriptors, first, second)
    same_file = alignment >= thresholds.file.value  # not for NaN
    found = same_file | (similarity >= thresholds.moment.value)
    grade = np.where(same_file, SAME_FILE, SAME_MOMENT)
    return Pairs(*(each[found] for each in (first, second, similarity, alignment, turn, grade)))


def nearby(scores: np.ndarray, nearest: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Candidates (query, neighbour, 1) [P,3] by their similarity [N,k]."""
    rank = np.arange(scores.shape[1])
    near = (scores >= thresholds.moment.value) | ((scores >= thresholds.floor) & (rank < MOST_COMPARED))
    query, column = np.nonzero(near & np.isfinite(scores))
    return np.stack([query, nearest[query, column], np.ones_like(query)], 1)


def each_once(candidates: np.ndarray) -> np.ndarray:
    """Candidates [P,3] without repetitions, the first index less than the second; turns are turned about."""
    i, j, turn = candidates.T
    undone = np.array([0, *UNDONE.values()])[turn]
    ordered = np.where((i < j)[:, None], candidates, np.stack([j, i, undone], 1))
    return np.unique(ordered, axis=0)


def best_turn(candidates: np.ndarray, alignment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, with the turn of the largest alignment, of sorted candidates [P,3]."""
    order = np.lexsort((candidates[:, 2], -np.nan_to_num(alignment, nan=-1), candidates[:, 1], candidates[:, 0]))
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
