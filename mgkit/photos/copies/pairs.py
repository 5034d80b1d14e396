"""Pairs of pictures that are near-duplicates, of two grades."""

from dataclasses import dataclass

import numpy as np

SAME_FILE = 1  # one was made from the other: compressed, resized, cropped, turned, retouched
SAME_MOMENT = 2  # another frame of what the other shows
GRADES = {SAME_FILE: "the same file, edited", SAME_MOMENT: "the same moment"}


@dataclass(frozen=True)
class Pairs:
    """P pairs of near-duplicates, by the indices of the pictures.

    first, second: [P] int64, first < second.
    similarity: cosine of the descriptors [P].
    alignment: correlation of the two pictures where one is laid over the other [P]; NaN if not compared.
    turn: how the second is turned relative to the first [P], 1 to 8 as in the rotation tag.
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


def pairs_above(scores: np.ndarray, indices: np.ndarray, threshold: float) -> Pairs:
    """The pairs of neighbours [N,k] above a threshold, none of which were laid over each other.

    indices: of the pictures; row i holds the neighbours of picture i.
    """
    i, column = np.nonzero(scores >= threshold)
    ends = np.sort(np.stack([i, indices[i, column]]), axis=0)  # [2,P], with pairs that are there twice
    ends, place = np.unique(ends, axis=1, return_index=True)
    similarity = scores[i, column][place]
    count = len(similarity)
    unknown, unturned = np.full(count, np.nan), np.ones(count, dtype=np.int64)
    return Pairs(*ends, similarity, unknown, unturned, np.full(count, SAME_MOMENT))
