"""What a search in pictures found, and its files."""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgkit.data.decoding import WHOLE, image_shape, without_warnings
from mgkit.data.images import ImageList, evenly
from mgkit.engine.run import Run
from mgkit.explore.browse import Classes, Collection
from mgkit.machine.printable import csv_name, shown_name
from mgkit.model import Whitening
from mgkit.photos.copies.groups import Group
from mgkit.photos.copies.thresholds import Threshold, Thresholds
from mgkit.photos.given import GivenPhotoTask
from mgkit.photos.looks import Facts
from mgkit.photos.task import PhotoTask


@dataclass(frozen=True)
class FoundPhotos:
    """Results of a search in N pictures.

    descriptors: L2-normalised ([N,D]); NaN where unreadable.
    whitened: which whitening was chosen, and why.
    groups: near-duplicates, as indices of pictures.
    pairs: number of pairs above the threshold.
    labels, probabilities: of the most probable classes ([N,5]); -1 and NaN where unreadable.
    class_names: empty where the network's classes do not fit the pictures; `fit` says why.
    left_out: {path: reason} of files that were not searched.
    more_pairs: whether there may be more pairs than were counted.
    against: number of pictures that belong to `photos`, the first ones; None: all, compared with each other.
    """

    task: PhotoTask | GivenPhotoTask
    descriptors: np.ndarray
    whitening: Whitening | None
    whitened: str
    threshold: Threshold
    groups: list[Group]
    pairs: int
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    fit: str
    left_out: dict[str, str]
    more_pairs: bool = False
    against: int | None = None

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds of the two grades."""
        return Thresholds(self.threshold, self.threshold)

    def facts(self, i: int) -> Facts:
        """What is known of a picture's file."""
        path = self.images.paths[i]
        try:
            status = os.stat(path)
        except OSError:
            return Facts(1, 1, 0, 0.0)
        with without_warnings():
            return Facts(*image_shape(path, self.images.exif, WHOLE), status.st_size, status.st_mtime)

    @property
    def images(self) -> ImageList:
        return self.task.folder.images

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

    def describe(self) -> str:
        """One line: the number of near-duplicates, groups and pairs."""
        inside = sum(len(group.members) for group in self.groups)
        pairs = f"{'at least ' if self.more_pairs else ''}{self.pairs:,} pairs"
        return (
            f"{inside:,} of {len(self.readable):,} pictures are near-duplicates, in "
            f"{len(self.groups):,} groups joined by {pairs}"
        )


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
    run.write("near_duplicates.csv", duplicates_csv(found))
    reasons = [(csv_name(path), why) for path, why in found.left_out.items()]
    run.write("left_out.csv", as_csv(["file", "why"], reasons))
    threshold = found.threshold
    run.results({
        "pictures": len(found.images), "readable": len(found.readable), "left_out": len(found.left_out),
        **found.task.settings, "whitening": found.whitened, "threshold": threshold.value,
        "false_images": threshold.false_images if math.isfinite(threshold.false_images) else None,
        "copies_found": threshold.found, "groups": len(found.groups), "pairs": found.pairs,
        "more_pairs": found.more_pairs, "classes": found.fit,
    })  # fmt: skip


def duplicates_csv(found: FoundPhotos) -> str:
    rows = [
        (number, csv_name(found.path(i)), f"{similarity:.4f}")
        for number, group in enumerate(found.groups, 1)
        for i, similarity in zip(group.members, group.similarities, strict=True)
    ]
    return as_csv(["group", "file", "similarity to the nearest of its group"], rows)


def as_csv(header: Sequence[str], rows: Sequence[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
