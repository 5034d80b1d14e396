"""Groups of near-duplicates that one stray pair cannot join.

Copies of a file are grouped around the picture that stays: each of them is a copy of that one, not of a copy
of a copy. Frames of one moment are grouped by hierarchical clustering with average linkage (Sokal & Michener
1958): two groups become one where all their pictures are alike in the mean. Of a group of copies, only the
one that stays takes part.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from mgkit.photos.copies.orientation import THEN, relative, turns_along
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT, Pairs, cosines
from mgkit.photos.copies.small import UNDONE

# Of the threshold of a pair, that the mean of a group's pairs reaches: the nearest two of several frames are
# more alike than the others. With 1, fewer objects of UKBench stay whole (Lite0: 53 instead of 72 %).
SHARE = 0.8
MOST = 2000  # pictures of a moment whose similarities are held at once: 32 MB
IDENTICAL = 0.999  # similarity of identical pictures is 1 up to rounding

# Pictures i [P] and j [P], and how the second is turned relative to the first [P] -> similarities [P].
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Choose = Callable[[Sequence[int]], tuple[int, str]]  # pictures -> position of the one that stays, and why
Covers = Callable[[int, int], bool]  # whether nothing is lost with the second picture where the first is kept
MayGo = Callable[[int], bool]  # whether a picture may be proposed to go where a better copy stays
NO_COPY = {SAME_FILE: "no copy there is as good", SAME_MOMENT: "no copy of it is there"}


@dataclass(frozen=True)
class Group:
    """Near-duplicates of one grade.

    members: indices of the images, in their order.
    similarities: each one's similarity to the nearest of the others; of copies to the one that they are
        grouped around, and of that one to the nearest.
    grade: SAME_FILE or SAME_MOMENT.
    tightness: mean similarity of its pairs; of copies of those with that one.
    turns: how each is turned relative to the one that is kept, 1 to 8 as in the rotation tag.
    kept: position in `members` of the one that is proposed to stay.
    reason: why that one, as text.
    going: indices of the images that are proposed to go: copies of a file only.

    Of SAME_FILE, similarities are correlations of the pictures laid over each other, if they were; else they
    are cosines of descriptors.
    """

    members: tuple[int, ...]
    similarities: tuple[float, ...]
    grade: int = SAME_MOMENT
    tightness: float = math.nan
    turns: tuple[int, ...] = ()
    kept: int = 0
    reason: str = ""
    going: tuple[int, ...] = ()

    @property
    def strongest(self) -> float:
        return max(self.similarities)


@dataclass(frozen=True)
class Measure:
    """How alike pictures are that are no pair yet, as copies of a file.

    score: pictures i [P] and j [P], and how the second is turned relative to the first [P], 1 to 8 as in the
        rotation tag -> their similarities [P]; NaN if they cannot be compared.
    least: the least similarity of copies.
    """

    score: Score
    least: float


class Edges(NamedTuple):
    """Pairs of pictures with their similarities by the measure of a grade, each [P]."""

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray

    def matrix(self, count: int) -> csr_array:
        """The similarities as a sparse symmetric matrix [N,N]; 0 where pictures are no pair."""
        i, j = np.concatenate([self.first, self.second]), np.concatenate([self.second, self.first])
        return coo_array((np.tile(self.score, 2), (i, j)), shape=(count, count)).tocsr()


def near_duplicates(
    pairs: Pairs, descriptors: np.ndarray, *, least: float, choose: Choose, may_go: MayGo = lambda i: True,
    measure: Measure | None = None,
) -> list[Group]:  # fmt: skip
    """The groups of N pictures: copies of a file, then frames of a moment; the most alike first.

    A picture is in one group of each grade at most. Of a group of copies, only the one that is kept can be in
    a group of a moment. Only copies of a file are proposed to go.

    descriptors: [N,D], L2-normalised.
    least: the least cosine similarity of frames of a moment.
    may_go: whether a copy may be proposed to go.
    measure: compares pictures that others join but that are no pair yet, twice as many as there are pairs at
        most (see `copies_of`); None: they are no copies.
    """
    count = len(descriptors)
    score, found, stands_for = scores_of(pairs), [], np.arange(count)
    same = pairs.grade == SAME_FILE
    turns = turns_along(pairs.at(same), score[same], count)
    edges = Edges(pairs.first[same], pairs.second[same], score[same])
    for kept, copies in stars(edges, turns, measure, choose):
        stands_for[list(copies)] = kept
        group = star_group(kept, copies, SAME_FILE, turns, choose, centre=kept)
        found.append(replace(group, going=tuple(i for i in group.members if i != kept and may_go(i))))
    edges = edges_between(pairs, stands_for, descriptors, least)
    for members, similarities, tightness in clusters(edges, descriptors, least):
        unturned = np.ones(count, np.int64)
        found.append(group_of(members, similarities, SAME_MOMENT, tightness, unturned, choose))
    return in_order(found)


def matches(pairs: Pairs, count: int, own: int, *, choose: Choose, covers: Covers) -> list[Group]:
    """Each of the first `own` of N pictures with its copies among the others, or else with its moment.

    Pairs of two of the first, and of two of the others, are left out. A picture goes if a copy of it that is
    at least as good is among the others; none of those goes.
    """
    score, found = scores_of(pairs), []
    same = pairs.grade == SAME_FILE
    turns = turns_along(pairs.at(same), score[same], count)
    across = np.flatnonzero((pairs.first < own) & (pairs.second >= own))
    across = across[np.argsort(pairs.first[across], kind="stable")]
    starts = np.flatnonzero(np.diff(pairs.first[across])) + 1
    for of_one in np.split(across, starts) if len(across) else []:
        grade = int(pairs.grade[of_one].min())
        best = of_one[pairs.grade[of_one] == grade]
        others = dict(zip(pairs.second[best].tolist(), score[best].tolist(), strict=True))
        found.append(match(int(pairs.first[best[0]]), others, grade, turns, choose, covers))
    return in_order(found)


def match(
    picture: int, others: dict[int, float], grade: int, turns: np.ndarray, choose: Choose, covers: Covers
) -> Group:
    """The group of one picture and what it is among the others {index: similarity}."""
    good = [i for i in others if grade == SAME_FILE and covers(i, picture)]
    place, reason = choose(good) if good else (0, NO_COPY[grade])
    kept = good[place] if good else picture
    group = star_group(picture, others, grade, turns, lambda i: (i.tolist().index(kept), reason))
    return replace(group, going=(picture,) if good else ())


def in_order(groups: Sequence[Group]) -> list[Group]:
    """By grade; within each the most alike first."""
    return sorted(groups, key=lambda group: (group.grade, -group.strongest, group.members))


def scores_of(pairs: Pairs) -> np.ndarray:
    """The similarity that gave each pair its grade [P]: the alignment of copies, where it was measured."""
    laid = (pairs.grade == SAME_FILE) & np.isfinite(pairs.alignment)
    return np.where(laid, pairs.alignment, pairs.similarity)


def group_of(
    members: np.ndarray,
    similarities: np.ndarray,
    grade: int,
    tightness: float,
    turns: np.ndarray,
    choose: Choose,
    *,
    centre: int | None = None,
) -> Group:
    """The group of pictures [m] with their similarities [m].

    turns: of all N pictures, see `turns_along`.
    centre: the picture that is kept; None: the best of them.
    """
    kept, reason = choose(members)
    if centre not in (None, members[kept]):
        kept, reason = members.tolist().index(centre), "the best of all that are joined with these"
    indices = tuple(members.tolist())
    similarities = tuple(np.minimum(similarities, 1).tolist())  # of identical pictures 1 up to rounding
    turned = relative(turns[members], kept)
    return Group(indices, similarities, grade, min(tightness, 1.0), turned, kept, reason)


# --- Copies of a file


def star_group(
    picture: int, others: Mapping[int, float], grade: int, turns: np.ndarray, choose: Choose,
    *, centre: int | None = None,
) -> Group:  # fmt: skip
    """The group of a picture and others {index: similarity to it}; centre: see `group_of`."""
    similarities = {picture: max(others.values())} | others
    members = np.array(sorted(similarities))
    scores = np.array([similarities[i] for i in members.tolist()])
    return group_of(
        members, scores, grade, float(np.mean(list(others.values()))), turns, choose, centre=centre
    )


def stars(
    edges: Edges, turns: np.ndarray, measure: Measure | None, choose: Choose
) -> Iterator[tuple[int, dict[int, float]]]:
    """Yield each picture that stays, of N, and its copies {index: similarity to it}.

    turns: see `turns_along` ([N]).
    """
    matrix = edges.matrix(len(turns))
    for members in components(matrix):
        kept_for = kept_in(members, matrix, turns, measure, choose)
        copies: dict[int, dict[int, float]] = {}
        for copy, (kept, similarity) in kept_for.items():
            copies.setdefault(kept, {})[copy] = similarity
        yield from copies.items()


def kept_in(
    members: np.ndarray, matrix: csr_array, turns: np.ndarray, measure: Measure | None, choose: Choose
) -> dict[int, tuple[int, float]]:
    """{copy: (the picture that stays for it, their similarity)} of a component [m].

    The best picture stays and takes its copies, then the best of the rest, and so on. A copy goes over to a
    later one that it is more similar to, if that one is the better picture of the two.
    """
    left, centres, found = members.tolist(), set(), {}
    while left:
        centre = left[choose(left)[0]]
        centres.add(centre)
        for other, similarity in copies_of(centre, set(left), matrix, turns, measure).items():
            if other in found:
                better = similarity > found[other][1] and choose([centre, other])[0] == 0
            else:
                better = other not in centres
            if better:
                found[other] = (centre, similarity)
        left = [i for i in left if i not in centres and i not in found]
    return found


def copies_of(
    centre: int, left: set[int], matrix: csr_array, turns: np.ndarray, measure: Measure | None
) -> dict[int, float]:
    """{copy: similarity} of a picture: those in its pairs, and those that the measure finds.

    It is compared with the pictures that are left and in a pair with one of its copies that was left, too.
    As a copy is left only once, that makes two comparisons a pair at most, for all centres together.
    """
    copies = joined(matrix, centre)
    seen, reached = {centre, *copies}, left & copies.keys()
    while measure and reached:
        others = {i for copy in reached for i in joined(matrix, copy)}
        new = np.array(sorted((others & left) - seen), dtype=np.int64)
        if not len(new):
            break
        seen.update(new.tolist())
        turn = THEN[turns[new], UNDONE[int(turns[centre])]]
        scores = measure.score(np.full(len(new), centre), new, turn)
        alike = scores >= measure.least  # not for NaN
        reached = new[alike].tolist()
        copies |= zip(reached, scores[alike].tolist(), strict=True)
    return copies


def joined(matrix: csr_array, picture: int) -> dict[int, float]:
    """{other: similarity} of the pairs of a picture, from a sparse matrix [N,N]."""
    entries = slice(*matrix.indptr[picture : picture + 2])
    return dict(zip(matrix.indices[entries].tolist(), matrix.data[entries].tolist(), strict=True))


def components(matrix: csr_array) -> list[np.ndarray]:
    """The connected components of more than one picture, each as sorted indices."""
    label = connected_components(matrix, directed=False)[1]
    order = np.argsort(label, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    return [part for part in parts if len(part) > 1]


# --- Frames of a moment


def edges_between(pairs: Pairs, stands_for: np.ndarray, descriptors: np.ndarray, least: float) -> Edges:
    """The pairs that are alike enough, of the pictures that stand for those of the pairs; each once."""
    ends = np.sort(stands_for[np.stack([pairs.first, pairs.second])], axis=0)  # [2,P]
    itself = (ends[0] == pairs.first) & (ends[1] == pairs.second)
    similarity = pairs.similarity.astype(np.float64)
    similarity[~itself] = cosines(descriptors, *ends[:, ~itself])
    order = np.lexsort((-similarity, ends[1], ends[0]))
    ends, similarity = ends[:, order], similarity[order]
    which = (ends[0] != ends[1]) & (similarity >= least)
    which[1:] &= (np.diff(ends) != 0).any(0)
    return Edges(ends[0, which], ends[1, which], similarity[which])


def clusters(
    edges: Edges, descriptors: np.ndarray, least: float
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield the pictures [m] of each moment, each one's similarity to the nearest, and the mean of all."""
    for members, matrix in parts(edges, len(descriptors), least):
        if len(members) > MOST:
            inside = matrix[members][:, members]
            yield members, inside.max(axis=1).toarray(), float(inside.data.mean())
            continue
        similarities = all_similarities(members, matrix, descriptors)
        distances = squareform(1 - similarities, checks=False)
        labels = fcluster(linkage(distances, "average"), 1 - SHARE * least, "distance")
        np.fill_diagonal(similarities, -np.inf)
        for label in range(1, labels.max() + 1):
            of_label = np.flatnonzero(labels == label)
            nearest = similarities[np.ix_(of_label, of_label)].max(1)
            of_label = of_label[nearest >= least]  # those that are in a pair with one of the group
            if len(of_label):
                block = similarities[np.ix_(of_label, of_label)]
                yield members[of_label], block.max(1), float(block[np.isfinite(block)].mean())


def parts(edges: Edges, count: int, least: float) -> Iterator[tuple[np.ndarray, csr_array]]:
    """Yield the connected components [m] of pairs of N pictures, with the matrix of these.

    One of more than MOST pictures is cut at a higher similarity, as a film of a thousand frames; identical
    pictures stay together.
    """
    matrix = edges.matrix(count)
    for members in components(matrix):
        if len(members) <= MOST or least >= IDENTICAL:
            yield members, matrix
        else:
            higher = (least + 1) / 2
            inside = np.isin(edges.first, members) & (edges.score >= higher)
            yield from parts(Edges(*(column[inside] for column in edges)), count, higher)


def all_similarities(members: np.ndarray, matrix: csr_array, descriptors: np.ndarray) -> np.ndarray:
    """The similarities of all pictures of a component [m,m], at most 1; those of pairs are in the matrix."""
    rows = np.asarray(descriptors[members], np.float64)
    of_pairs = matrix[members][:, members].toarray()
    similarities = np.where(of_pairs != 0, of_pairs, rows @ rows.T)
    np.fill_diagonal(similarities, 1)
    return np.minimum(similarities, 1)


def pairs_beyond(scores: np.ndarray, threshold: float, others: int) -> bool:
    """Whether all k neighbours of an image, of more others, lie above the threshold: pairs may be missing."""
    return 0 < scores.shape[1] < others and bool((scores[:, -1] >= threshold).any())
