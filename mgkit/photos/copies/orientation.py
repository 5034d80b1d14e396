"""How pictures of a group are turned relative to each other: the eight turnings and mirrorings of a square.

They have the numbers of the rotation tag of EXIF data: 1 changes nothing, 2 mirrors left and right, 6 turns
by 90 degrees clockwise. One after the other they make one of the eight again (the dihedral group of order 8).
A picture that is turned by t relative to another one looks like that one when it is shown with the tag t.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from mgkit.photos.copies.pairs import Pairs
from mgkit.photos.copies.small import UNDONE

# Where a turning moves a point (x to the right, y downwards, from the centre), by its number.
MATRICES = np.array([
    [[0, 0], [0, 0]],  # there is no 0
    [[1, 0], [0, 1]], [[-1, 0], [0, 1]], [[-1, 0], [0, -1]], [[1, 0], [0, -1]],
    [[0, 1], [1, 0]], [[0, -1], [1, 0]], [[0, -1], [-1, 0]], [[0, 1], [-1, 0]],
])  # fmt: skip
# THEN[a, b] is the turning that does a, then b.
THEN = np.array([[(b @ a == MATRICES).all((1, 2)).argmax() for b in MATRICES] for a in MATRICES])


def turns_along(pairs: Pairs, score: np.ndarray, count: int) -> np.ndarray:
    """How each of N pictures is turned relative to one of those that pairs join it with [N]; 1 without pairs.

    Along the surest pairs: those of a maximum spanning tree of the scores [P], which are at most 1.
    """
    root = count  # a further node, joined with every picture by an edge that is longer than any pair's
    i, j = np.append(pairs.first, np.full(count, root)), np.append(pairs.second, np.arange(count))
    lengths = np.append(2 - score, np.full(count, 4.0))  # an edge of length 0 would be none
    tree = minimum_spanning_tree(coo_array((lengths, (i, j)), shape=(count + 1, count + 1)).tocsr())
    order, before = breadth_first_order(tree, root, directed=False)
    ends = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    of_pair = dict(zip(ends, pairs.turn.tolist(), strict=True))
    turns = np.ones(count, dtype=np.int64)
    for picture, other in zip(order[1:].tolist(), before[order[1:]].tolist(), strict=True):
        if other != root:
            turn = of_pair.get((other, picture)) or UNDONE[of_pair[picture, other]]
            turns[picture] = THEN[turn, turns[other]]
    return turns


def relative(turns: np.ndarray, kept: int) -> tuple[int, ...]:
    """Turns of a group's pictures relative to the same one [m] -> relative to the kept of them."""
    return tuple(THEN[turns, UNDONE[int(turns[kept])]].tolist())
