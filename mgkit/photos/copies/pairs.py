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
