"""What a retrieval benchmark asks: images, queries, database, right answers; and readers of ground truth."""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mgkit.data.decoding import View
from mgkit.data.folders import check_folder, image_files
from mgkit.data.images import UNLABELLED, ImageList


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
    `mAP`, `score` (UKBench's, out of 4), `micro-AP` over all pairs, or `none` where nothing says what is right. level: of
    Copydays' weaker copies the edit and its strength, as `("crops", 10)`. Sets that share their images (the levels of one
    benchmark) share the very same `images`.
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
    level: tuple[str, int] | None = None

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

    def alone(self) -> "RetrievalSet":
        """The set without the images that only others ask, which share its images with it; itself where there are none."""
        used = np.zeros(len(self.images), dtype=bool)
        for indices in (self.queries, self.database, self.background):
            used[indices] = True
        return self.only(used)

    def right(self, q: int, image: int) -> bool | None:
        """Whether an image answers query number q; None for junk, and where nothing says what is right."""
        if self.measure == "none" or (self.junk and image in self.junk[q]):
            return None
        return bool(image in self.positives[q])

    def describe(self) -> str:
        """One line: how many queries, images and answers."""
        if self.measure == "none":
            return f"{self.name}: {len(self.images)} images without ground truth, each of them a query"
        return (
            f"{self.name}: {len(self.queries)} queries, {len(self.database)} database images, "
            f"{sum(map(len, self.positives)) / max(len(self.queries), 1):.1f} positives a query"
        )


# --- Reading folders


def unlabelled(
    root: Path, paths: Iterable[str], *, exif: bool = False, views: Mapping[int, View] | None = None
) -> ImageList:
    paths = tuple(paths)
    return ImageList(
        root, paths, np.full(len(paths), UNLABELLED, dtype=np.int64), exif=exif, views=views or {}
    )


def numbers(paths: Sequence[str], pattern: str, folder: Path) -> list[int]:
    """The number in each file name; ValueError names the first file that the pattern does not fit, and two of one name."""
    found = []
    for path in paths:
        match = re.fullmatch(pattern, Path(path).name, flags=re.IGNORECASE)
        if not match:
            raise ValueError(f"{folder}: {Path(path).name} is not named as in this set ({pattern})")
        found.append(int(match[1]))
    by_stem(paths, folder)
    return found


def by_stem(paths: Sequence[str], folder: Path) -> dict[str, int]:
    """{file name without suffix: index}; ValueError names two files that differ in suffix or sub-folder alone."""
    found = {}
    for index, path in enumerate(paths):
        stem = os.path.splitext(os.path.basename(path))[0]
        if found.setdefault(stem, index) != index:
            first, second = (
                os.path.relpath(each, os.path.realpath(folder)) for each in (paths[found[stem]], path)
            )
            raise ValueError(f"{folder} holds {stem} twice: {first} and {second}")
    return found


def files_of(folder: Path, name: str) -> list[str]:
    """The images of a set's folder; FileNotFoundError or ValueError names the set and the folder."""
    paths = image_files(check_folder(folder, name))
    if not paths:
        raise ValueError(f"{name}: {folder} holds no images")
    return paths


def located(names: Iterable[str], of_stem: dict[str, int], folder: Path, listing: Path) -> list[int]:
    """The indices of named images; FileNotFoundError says how many are not in the folder, and the first."""
    names = list(names)
    missing = [name for name in dict.fromkeys(names) if name not in of_stem]
    if missing:
        raise FileNotFoundError(
            f"{listing} names {len(missing)} images that are not in {folder}, the first is {missing[0]!r}"
        )
    return [of_stem[name] for name in names]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells without spaces around) of a csv's lines that are not blank; ValueError names what is no such file."""
    try:
        with open(
            path, newline="", encoding="utf-8-sig"
        ) as file:  # spreadsheets may put a byte order mark first
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no csv file in UTF-8: {error}") from None
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def columns(header: list[str], names: tuple[str, ...]) -> list[int] | None:
    """Where the named columns stand in a header; None where it lacks one."""
    found = [cell.lower() for cell in header]
    return [found.index(name) for name in names] if set(names) <= set(found) else None
