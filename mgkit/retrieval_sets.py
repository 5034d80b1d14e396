"""Retrieval benchmarks: their images, queries and ground truth, read from the folders as they are distributed."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mgkit.datasets import (
    UNLABELLED,
    ImageList,
    check_folder,
    class_folders,
    dataset_root,
    plain_images,
    val_images,
)
from mgkit.imagenet import META, split_folder
from mgkit.index import image_files


def no_images() -> np.ndarray:
    """An empty array of indices."""
    return np.array([], dtype=np.int64)


@dataclass(frozen=True)
class RetrievalSet:
    """Q queries among N images.

    images: all N that are embedded. queries: [Q] indices. database: [M] indices that are ranked. positives: for each query the
    indices that answer it, without itself; none where it has no answer. junk: for each query the indices that are taken out of its
    ranking, neither right nor wrong; () where there are none. background: indices of images that only normalise scores (DISC's
    training images). distractors: indices of the part of the database that answers nothing, of the user's own choice. measure:
    `mAP`, `score` (UKBench's, out of 4), `micro-AP` over all pairs, or `none` where nothing says what is right. Sets that share
    their images (the levels of one benchmark) share the very same `images`.
    """

    name: str
    images: ImageList
    queries: np.ndarray
    database: np.ndarray
    positives: tuple[np.ndarray, ...]
    measure: Literal["mAP", "score", "micro-AP", "none"] = "mAP"
    junk: tuple[np.ndarray, ...] = ()
    background: np.ndarray = field(default_factory=no_images)
    distractors: np.ndarray = field(default_factory=no_images)

    def only(self, kept: np.ndarray) -> "RetrievalSet":
        """The set without the images where kept [N] is False: they neither ask, nor answer, nor count as positives.

        A query that has lost its every positive asks nothing; one that had none stays.
        """
        if kept.all():
            return self
        number = np.cumsum(kept) - 1  # old index -> new
        answerable = [not len(positives) or kept[positives].any() for positives in self.positives]
        asking = np.flatnonzero(kept[self.queries] & np.array(answerable, dtype=bool))

        def renumbered(indices: np.ndarray) -> np.ndarray:
            return number[indices[kept[indices]]]

        return replace(
            self,
            images=self.images.subset(np.flatnonzero(kept)),
            queries=number[self.queries[asking]],
            database=renumbered(self.database),
            positives=tuple(renumbered(self.positives[q]) for q in asking),
            junk=tuple(renumbered(self.junk[q]) for q in asking) if self.junk else (),
            background=renumbered(self.background),
            distractors=renumbered(self.distractors),
        )

    def describe(self) -> str:
        """One line: how many queries, images and answers."""
        if self.measure == "none":
            return f"{self.name}: {len(self.images)} images without ground truth, each of them a query"
        return (
            f"{self.name}: {len(self.queries)} queries, {len(self.database)} database images, "
            f"{sum(map(len, self.positives)) / max(len(self.queries), 1):.1f} positives a query"
        )


def unlabelled(root: Path, paths: Sequence[str], *, exif: bool = False) -> ImageList:
    return ImageList(root, tuple(paths), np.full(len(paths), UNLABELLED, dtype=np.int64), exif=exif)


def numbers(paths: Sequence[str], pattern: str, folder: Path) -> list[int]:
    """The number in each file name; ValueError names the first file that the pattern does not fit."""
    found = []
    for path in paths:
        match = re.fullmatch(pattern, Path(path).name, flags=re.IGNORECASE)
        if not match:
            raise ValueError(f"{folder}: {Path(path).name} is not named as in this set ({pattern})")
        found.append(int(match[1]))
    return found


def files_of(folder: Path, name: str) -> list[str]:
    """The images of a set's folder; FileNotFoundError or ValueError names the set and the folder."""
    paths = image_files(check_folder(folder, name))
    if not paths:
        raise ValueError(f"{name}: {folder} holds no images")
    return paths


def holidays(root: str | Path) -> RetrievalSet:
    """INRIA Holidays, `jpg/1NNNNN.jpg`: group = number // 100, its ..00.jpg is the query, the others are the positives.

    The database is all images, a query left out of its own ranking. Raises ValueError for a group without its query
    or without a positive.
    """
    folder = Path(root) / "jpg"
    paths = files_of(folder, "holidays")
    groups = defaultdict(list)
    for index, number in enumerate(numbers(paths, r"(\d{6})\.jpe?g", folder)):
        groups[number // 100].append((number, index))
    queries, positives = [], []
    for group, members in sorted(groups.items()):
        members.sort()
        if members[0][0] % 100:
            raise ValueError(f"holidays: group {group} of {folder} lacks its query {group}00.jpg")
        if len(members) < 2:
            raise ValueError(f"holidays: group {group} of {folder} has only its query")
        queries.append(members[0][1])
        positives.append(np.array([index for _, index in members[1:]]))
    everything = np.arange(len(paths))
    return RetrievalSet(
        "holidays", unlabelled(folder, paths), np.array(queries), everything, tuple(positives)
    )


def ukbench(root: str | Path) -> RetrievalSet:
    """UKBench, `full/ukbenchNNNNN.jpg`: consecutive fours, by number, show one object; every image is a query.

    Raises ValueError for an incomplete four.
    """
    folder = Path(root) / "full"
    paths = files_of(folder, "ukbench")
    objects = defaultdict(list)
    for index, number in enumerate(numbers(paths, r"ukbench(\d{5})\.jpe?g", folder)):
        objects[number // 4].append(index)
    for number, members in sorted(objects.items()):
        if len(members) != 4:
            raise ValueError(
                f"ukbench: object {number} of {folder} has {len(members)} images, not 4 (from ukbench{4 * number:05d}.jpg)"
            )
    positives = {i: np.array([j for j in members if j != i]) for members in objects.values() for i in members}
    everything = np.arange(len(paths))
    return RetrievalSet(
        "ukbench",
        unlabelled(folder, paths),
        everything,
        everything,
        tuple(positives[i] for i in everything),
        "score",
    )


def copydays(root: str | Path, *, distractors: ImageList | None = None) -> RetrievalSet:
    """Copydays, strong copies as queries against `original/` and distractors; the name's first four digits say which original.

    Raises ValueError for a strong copy whose original is missing, or two originals of one number.
    """
    root = Path(root)
    originals, strong = files_of(root / "original", "copydays"), files_of(root / "strong", "copydays")
    of_number = {}
    for index, number in enumerate(numbers(originals, r"(\d{4})\d*\.jpe?g", root / "original")):
        if number in of_number:
            raise ValueError(f"copydays: {root / 'original'} has two originals of number {number}")
        of_number[number] = index
    positives = []
    for path, number in zip(strong, numbers(strong, r"(\d{4})\d*\.jpe?g", root / "strong"), strict=True):
        if number not in of_number:
            raise ValueError(f"copydays: {path} has no original of number {number} in {root / 'original'}")
        positives.append(np.array([of_number[number]]))
    extra = distractors.paths if distractors is not None else ()
    database = [*originals, *extra]
    name = f"copydays + {len(extra)} distractors" if extra else "copydays"
    return RetrievalSet(
        name,
        unlabelled(root, [*database, *strong]),
        np.arange(len(database), len(database) + len(strong)),
        np.arange(len(database)),
        tuple(positives),
    )


def grouped_folder(root: str | Path) -> RetrievalSet:
    """Images grouped by sub-folder, as `grouped` by class."""
    return grouped(Path(root).name, class_folders(root, purpose="retrieval folder"))


def grouped(name: str, images: ImageList) -> RetrievalSet:
    """Every image is a query, the others of its class are the positives.

    An image alone in its class is ranked but asks nothing. Raises ValueError if no class has two images.
    """
    members = [np.flatnonzero(images.labels == label) for label in range(len(images.classes))]
    queries = [i for i in range(len(images)) if len(members[images.labels[i]]) > 1]
    if not queries:
        raise ValueError(f"{images.root}: no class has two images, so there is nothing to retrieve")
    positives = tuple(members[images.labels[i]][members[images.labels[i]] != i] for i in queries)
    return RetrievalSet(name, images, np.array(queries), np.arange(len(images)), positives)


def plain_folder(root: str | Path) -> RetrievalSet:
    """Images without any grouping: every image is a query, and there is no ground truth to measure against."""
    images = plain_images(root, purpose="retrieval folder")
    everything, nothing = np.arange(len(images)), no_images()
    return RetrievalSet(
        Path(root).name, images, everything, everything, (nothing,) * len(images), measure="none"
    )


def folder_set(root: Path) -> RetrievalSet:
    """A tree's validation images, or all of them where it has no val/, grouped by class if anything says the classes."""
    folder = split_folder(root, "val") or root
    if any(each.is_dir() and not each.name.startswith(".") for each in folder.iterdir()):
        return grouped_folder(folder)
    if folder != root and (root / META).is_file():  # ImageNet's flat original
        return grouped(folder.name, val_images(folder, root))
    return plain_folder(folder)


SET_NAMES = ("holidays", "ukbench", "copydays")


def find_sets(root: str | Path, *, names: Sequence[str] = (), distractors: str = "") -> list[RetrievalSet]:
    """The sets of those names below root, or all that are there: `holidays/`, `ukbench/`, `copydays/`, or else sub-folders as groups,
    or else a plain folder.

    distractors: a folder or list for Copydays; empty: `unlabelled/distractors` below root, where it exists. A tree in
    ImageNet's layout gives its validation images. Raises ValueError for an unknown name, FileNotFoundError for a missing set.
    """
    root = check_folder(root, "data")
    unknown = [name for name in names if name not in SET_NAMES]
    if unknown:
        raise ValueError(
            f"sets: {unknown[0]!r} is unknown; some of {', '.join(SET_NAMES)}, or none for all that are there"
        )
    found = [name for name in SET_NAMES if (root / name).is_dir()]
    if not names and not found:
        return [folder_set(dataset_root(root))]
    beside = root / "unlabelled" / "distractors"
    source = distractors or (beside if beside.is_dir() else "")
    loaders = {
        "holidays": lambda: holidays(root / "holidays"),
        "ukbench": lambda: ukbench(root / "ukbench"),
        "copydays": lambda: copydays(
            root / "copydays", distractors=plain_images(source, purpose="distractors") if source else None
        ),
    }
    return [loaders[name]() for name in names or found]
