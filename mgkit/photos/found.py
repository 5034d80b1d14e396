"""What a search in pictures found, and its files."""

import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mgkit.data.images import ImageList, evenly
from mgkit.engine.run import Run
from mgkit.explore.browse import Classes, Collection
from mgkit.machine.printable import shown_name
from mgkit.model import Whitening
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.pairs import GRADES, SAME_FILE, SAME_MOMENT
from mgkit.photos.copies.table import against_csv, duplicates_csv, left_out_csv
from mgkit.photos.copies.thresholds import Threshold, Thresholds
from mgkit.photos.given import GivenPhotoTask
from mgkit.photos.looks import Facts, describe_remarks
from mgkit.photos.task import PhotoTask

MOST_NAMED = 10  # of the files that were left out


@dataclass(frozen=True)
class FoundPhotos:
    """Results of a search in N pictures.

    descriptors: L2-normalised ([N,D]); NaN where unreadable.
    whitened: which whitening was chosen, and why.
    groups: near-duplicates of both grades, as indices of pictures; with `against`, each picture of `photos`
        with what it is there.
    pairs: number of pairs of both grades.
    labels, probabilities: of the most probable classes ([N,5]); -1 and NaN where unreadable.
    class_names: empty where the network's classes do not fit the pictures; `fit` says why.
    left_out: {path: reason} of files that were not searched.
    facts: index of a picture -> what is known of its file.
    more_pairs: whether there may be more pairs than were counted.
    """

    task: PhotoTask | GivenPhotoTask
    descriptors: np.ndarray
    whitening: Whitening | None
    whitened: str
    thresholds: Thresholds
    groups: list[Group]
    pairs: int
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    fit: str
    left_out: dict[str, str]
    facts: Callable[[int], Facts]
    more_pairs: bool = False

    @property
    def images(self) -> ImageList:
        return self.task.folder.images

    @property
    def against(self) -> int | None:
        """Number of the pictures of `photos`, which come first; None without further ones of `against`."""
        return self.task.folder.own

    @property
    def readable(self) -> np.ndarray:
        """Indices of the pictures that could be read."""
        return np.flatnonzero(np.isfinite(self.descriptors[:, 0]))

    def classes(self, i: int) -> Classes:
        """Names and probabilities of a picture's most probable classes; empty if the classes do not fit."""
        if not self.class_names:
            return []
        pairs = zip(self.labels[i], self.probabilities[i], strict=True)
        return [(self.class_names[k], float(p)) for k, p in pairs]

    def by_class(self, *, classes: int, each: int) -> list[tuple[str, int, list[int]]]:
        """(name, number of pictures, indices of the most probable) of the most frequent classes."""
        if not self.class_names:
            return []
        best = self.labels[self.readable, 0]
        found = []
        for label, count in Counter(best.tolist()).most_common(classes):
            members = self.readable[best == label]
            order = np.argsort(-self.probabilities[members, 0], kind="stable")[:each]
            found.append((self.class_names[label], count, members[order].tolist()))
        return found

    def collection(self, queries: Sequence[int] | None = None) -> Collection:
        """The pictures to browse; queries: indices, None for all."""
        classes = self.classes if self.class_names else None
        return Collection(
            self.images, self.descriptors, queries=queries, titles=self.titles(), classes=classes
        )

    def titles(self) -> dict[int, str]:
        """Captions of the pictures that are in a group."""
        return {i: f"(group {number})" for number, group in enumerate(self.groups, 1) for i in group.members}

    def sample(self, count: int) -> list[int]:
        """Indices of `count` readable pictures, evenly spaced."""
        return self.readable[evenly(len(self.readable), count)].tolist()

    def path(self, i: int) -> str:
        """A picture's path below the folder."""
        return os.path.relpath(self.images.paths[i], self.images.root)

    def name(self, i: int) -> str:
        """The same, printable."""
        return shown_name(self.path(i))

    def of_grade(self, grade: int) -> list[Group]:
        return [group for group in self.groups if group.grade == grade]

    def could_go(self) -> tuple[int, int]:
        """Number of the copies that could go, without frames of a moment, and the bytes that would free."""
        going = {i for group in self.of_grade(SAME_FILE) for i in group.going}
        return len(going), sum(map(self.freed_by, going))

    def freed_by(self, i: int) -> int:
        """The bytes that are free without a picture's file; 0 for a link, and if it has another name."""
        try:
            status = os.lstat(self.images.paths[i])
        except OSError:
            return 0
        return 0 if stat.S_ISLNK(status.st_mode) or status.st_nlink > 1 else status.st_size

    def describe(self) -> str:
        """One line: the number of near-duplicates, groups and pairs."""
        inside = len({i for group in self.groups for i in group.members})
        pairs = f"{'at least ' if self.more_pairs else ''}{self.pairs:,} pairs"
        return (
            f"{inside:,} of {len(self.readable):,} pictures are near-duplicates, in "
            f"{len(self.groups):,} groups joined by {pairs}"
        )

    def describe_grades(self) -> str:
        """Lines: the groups and pictures of each grade; what could go; with `against`, what is there."""
        apart = self.against is not None
        lines = [self.describe_against()] if apart else [self.describe_grade(grade) for grade in GRADES]
        count, size = self.could_go()
        lines.append(
            f"{count:,} copies could go, which would free {size / 1e6:,.1f} MB: those of the same file with "
            "keep = no in near_duplicates.csv; look before you delete"
        )
        return "\n".join(lines)

    def describe_grade(self, grade: int) -> str:
        groups = self.of_grade(grade)
        inside = sum(len(group.members) for group in groups)
        return f"{GRADES[grade]}: {inside:,} pictures in {len(groups):,} groups"

    def describe_against(self) -> str:
        """One line: how many pictures of `photos` are in `against`."""
        copies, moments = (len(self.of_grade(grade)) for grade in (SAME_FILE, SAME_MOMENT))
        readable = int((self.readable < self.against).sum())
        return (
            f"of {readable:,} pictures of photos, {copies:,} are in against as the same file, {moments:,} as "
            f"the same moment, {readable - copies - moments:,} not at all; each is in against.csv"
        )

    def describe_left_out(self) -> str:
        """Lines: how many files were left out, by reason, and the first of them."""
        if not self.left_out:
            return "left out: none"
        first = list(self.left_out.items())[:MOST_NAMED]
        lines = [
            f"left out: {len(self.left_out):,}, listed in left_out.csv: {by_kind(self.left_out.values())}"
        ]
        return "\n".join(lines + [f"  {shown_name(path)}: {why}" for path, why in first])

    def describe_remarks(self) -> str:
        """One line: how many pictures are not shown as they are stored, by what was done to them."""
        return f"remarks: {describe_remarks(self.task.remarks) or 'none'}"


def by_kind(reasons: Iterable[str], most: int = 6) -> str:
    """`the file is empty 12, not an image 3`: how often which reason was given, the most frequent first."""
    counts = Counter(reasons)
    parts = [f"{reason} {count:,}" for reason, count in counts.most_common(most)]
    if len(counts) > most:
        parts.append(f"others {counts.total() - sum(count for _, count in counts.most_common(most)):,}")
    return ", ".join(parts)


def left_out_of(task: PhotoTask | GivenPhotoTask) -> dict[str, str]:
    """{path: reason} of the files that were not searched."""
    unreadable = task.passes.unreadable.reasons
    return task.folder.left_out | {path: without_name(path, why) for path, why in unreadable.items()}


def without_name(path: str, why: str) -> str:
    """Why a picture was left out, without the name that the message begins with."""
    name = shown_name(path)
    for start in (f"cannot read the image {name}: ", f"cannot use the image {name}: ", f"{name} "):
        why = why.removeprefix(start)
    return why


def write_results(run: Run, found: FoundPhotos) -> None:
    paths = found.images.paths
    run.write("near_duplicates.csv", duplicates_csv(found.groups, paths, found.facts))
    run.write("left_out.csv", left_out_csv(found.left_out))
    if found.against is not None:
        readable = set(found.readable.tolist())
        run.write("against.csv", against_csv(found.groups, paths, found.against, readable))
    count, size = found.could_go()
    run.results({
        "pictures": len(found.images), "readable": len(found.readable), "left_out": len(found.left_out),
        **found.task.settings, "whitening": found.whitened,
        "same_file": of_threshold(found.thresholds.file),
        "same_moment": of_threshold(found.thresholds.moment), "groups": len(found.groups),
        "groups_of_a_file": len(found.of_grade(SAME_FILE)), "could_go": count, "bytes_freed": size,
        "pairs": found.pairs, "more_pairs": found.more_pairs, "classes": found.fit,
    })  # fmt: skip


def of_threshold(threshold: Threshold) -> dict:
    """A grade's threshold and its expected errors, for results.json."""
    expected = threshold.false_images if math.isfinite(threshold.false_images) else None
    return {"threshold": threshold.value, "false_images": expected, "copies_found": threshold.found}
