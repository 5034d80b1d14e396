"""The csv files of 06: for spreadsheets and other programs.

A path is absolute, so that it never begins like a formula, and stands there as it is: Python's `csv` gives
the very path back from a file opened with `encoding="utf-8", errors="surrogateescape", newline=""`, and so
does pandas with `encoding_errors="surrogateescape"`. All texts are quoted, for names may hold line breaks.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import SAME_FILE, SAME_MOMENT
from mgkit.photos.looks import Facts

DUPLICATES = ("group", "path", "keep", "reason", "similarity", "bytes", "grade", "tightness", "turned")
AGAINST = ("path", "found", "match", "similarity")
LEFT_OUT = ("path", "reason")
WORDS = {SAME_FILE: "the same file", SAME_MOMENT: "the same moment"}
NO, UNREADABLE = "no", "not read"  # of a picture that is not in `against`, or could not be looked for


def duplicates_csv(groups: Sequence[Group], paths: Sequence[str], facts: Callable[[int], Facts]) -> str:
    """A line for each picture of each group; the groups are numbered from 1."""
    return as_csv(DUPLICATES, duplicate_lines(groups, paths, facts))


def duplicate_lines(
    groups: Sequence[Group], paths: Sequence[str], facts: Callable[[int], Facts]
) -> Iterator[tuple]:
    for number, group in enumerate(groups, 1):
        going, of_group = set(group.going), (WORDS[group.grade], rounded(group.tightness))
        columns = zip(group.members, group.similarities, group.turns, strict=True)
        for place, (i, similarity, turn) in enumerate(columns):
            keep, reason = "no" if i in going else "yes", group.reason if place == group.kept else ""
            size = facts(i).size or ""  # of a file that is gone
            yield number, paths[i], keep, reason, rounded(similarity), size, *of_group, turn


def against_csv(groups: Sequence[Group], paths: Sequence[str], own: int, readable: Set[int]) -> str:
    """A line for each of the first `own` pictures: whether it is among the others, and its best match there.

    groups: from `matches`.
    readable: indices of the pictures that could be looked for.
    """
    lines = {i: (paths[i], NO if i in readable else UNREADABLE, "", "") for i in range(own)}
    for group in groups:
        picture, *others = group.members
        similarity, best = max(zip(group.similarities[1:], others, strict=True), key=lambda each: each[0])
        lines[picture] = (paths[picture], WORDS[group.grade], paths[best], rounded(similarity))
    return as_csv(AGAINST, lines.values())


def left_out_csv(left_out: Mapping[str, str]) -> str:
    """A line for each file that was not searched, {path: reason}."""
    return as_csv(LEFT_OUT, left_out.items())


def as_csv(header: Sequence[str], lines: Iterable[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows([header, *lines])
    return text.getvalue()


def rounded(similarity: float) -> float | str:
    return "" if math.isnan(similarity) else round(similarity, 4)
