"""Retrieval sets (images, queries, database, positives) and readers of folders and csv files."""

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np

from mgkit.data.decoding import View
from mgkit.data.folders import check_folder, image_files
from mgkit.data.images import UNLABELLED, ImageList
from mgkit.machine.files import read_text, split_lines
from mgkit.machine.printable import say_once
from mgkit.machine.records import shown


def no_images() -> np.ndarray:
    return np.array([], dtype=np.int64)


@dataclass(frozen=True)
class RetrievalSet:
    """Q queries among N images. Sets of one benchmark may share the same `images`.

    images: all images that are embedded (N)
    queries, database: indices of the queries ([Q]) and of the images that are ranked ([M])
    positives: indices of the positives of each query, without itself; may be empty
    measure: `mAP`, `mAP@k`, `Recall@1`, `score` (UKBench, 0..4), `micro-AP` over all pairs, or `none` without
    ground truth
    cutoff: k of `mAP@k`
    recalls: k of each Recall@k that is reported besides
    junk: indices removed from the ranking of each query; () if there are none
    background: indices of images for score normalisation only (DISC's training images)
    distractors: indices of the images that the user added to the database
    level: edit and strength of Copydays' levels, as `("crops", 10)`
    query_groups: number of what each query shows ([Q]), where queries without positives are to be rejected
    """

    name: str
    images: ImageList
    queries: np.ndarray
    database: np.ndarray
    positives: tuple[np.ndarray, ...]
    measure: Literal["mAP", "mAP@k", "Recall@1", "score", "micro-AP", "none"] = "mAP"
    junk: tuple[np.ndarray, ...] = ()
    background: np.ndarray = field(default_factory=no_images)
    distractors: np.ndarray = field(default_factory=no_images)
    level: tuple[str, int] | None = None
    cutoff: int | None = None
    recalls: tuple[int, ...] = ()
    query_groups: np.ndarray | None = None

    def only(self, kept: np.ndarray) -> "RetrievalSet":
        """Return the set of the images where kept [N] is True, without queries that lose all positives."""
        if kept.all():
            return self
        number = np.cumsum(kept) - 1  # new index by old index
        answerable = [not len(positives) or kept[positives].any() for positives in self.positives]
        remaining = np.flatnonzero(kept[self.queries] & np.array(answerable, dtype=bool))

        def renumbered(indices: np.ndarray) -> np.ndarray:
            return number[indices[kept[indices]]]

        return replace(
            self,
            images=self.images.subset(np.flatnonzero(kept)),
            queries=number[self.queries[remaining]],
            database=renumbered(self.database),
            positives=tuple(renumbered(self.positives[q]) for q in remaining),
            junk=tuple(renumbered(self.junk[q]) for q in remaining) if self.junk else (),
            background=renumbered(self.background),
            distractors=renumbered(self.distractors),
            query_groups=None if self.query_groups is None else self.query_groups[remaining],
        )

    def alone(self) -> "RetrievalSet":
        """Return the set without images that only other sets use; itself if there are none."""
        used = np.zeros(len(self.images), dtype=bool)
        for indices in (self.queries, self.database, self.background):
            used[indices] = True
        return self.only(used)

    def right(self, q: int, image: int) -> bool | None:
        """Return whether an image is a positive of query number q; None for junk or without ground truth."""
        if self.measure == "none" or (self.junk and image in self.junk[q]):
            return None
        return bool(image in self.positives[q])

    def describe(self) -> str:
        """Return one line with the numbers of queries, images and positives."""
        if self.measure == "none":
            return f"{self.name}: {len(self.queries)} images without ground truth, all queries"
        numbers = [len(positives) for positives in self.positives]
        unanswered = numbers.count(0)
        mean = sum(numbers) / max(len(numbers) - unanswered, 1)  # of queries that have any
        counts = f"{len(self.queries)} queries, {len(self.database)} database images"
        without = f", {unanswered} queries without an answer" if unanswered else ""
        return f"{self.name}: {counts}, {mean:.1f} positives per query{without}"


# --- Adding images


def extended(images: ImageList, paths: Sequence[str]) -> ImageList:
    """Return the images followed by unlabelled ones, which are read in the same way."""
    labels = np.concatenate([images.labels, np.full(len(paths), UNLABELLED, dtype=np.int64)])
    return replace(images, paths=(*images.paths, *paths), labels=labels)


def with_distractors(sets: Sequence[RetrievalSet], extra: ImageList) -> list[RetrievalSet]:
    """Return the sets with further images at the end of `images` and `database`, which answer no query.

    sets: those that share their images share them afterwards as well
    extra: the distractors; those that are images of the set already are left out, with a line

    Names say how many there are, but for levels of Copydays. Raises ValueError if none is left.
    """
    real = real_paths(extra.paths)
    of_images: dict[int, ImageList] = {}  # by identity
    found = []
    for one in sets:
        if id(one.images) not in of_images:
            own = set(real_paths(one.images.paths))
            others = [path for path, known in zip(extra.paths, real, strict=True) if known not in own]
            tell_own(one.name, extra, others)
            of_images[id(one.images)] = extended(one.images, others)
        images = of_images[id(one.images)]
        added = np.arange(len(one.images), len(images))
        found.append(
            replace(
                one,
                name=one.name if one.level else f"{one.name} + {len(added)} distractors",
                images=images,
                database=np.concatenate([one.database, added]),
                distractors=added,
            )
        )
    return found


def tell_own(name: str, extra: ImageList, others: Sequence[str]) -> None:
    """Print a line for distractors that are images of the set; ValueError if all are."""
    if not others:
        raise ValueError(f"distractors: all {len(extra)} images of {extra.root} are images of {name} itself")
    if len(others) < len(extra):
        own = len(extra) - len(others)
        say_once(f"distractors: {own} of {len(extra)} are images of {name} itself, and left out")


def real_paths(paths: Iterable[str]) -> list[str]:
    """Return the paths of the files that the paths lead to; each folder is resolved once."""
    real_folder = cache(os.path.realpath)
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        linked = os.path.islink(path)
        found.append(os.path.realpath(path) if linked else os.path.join(real_folder(folder), name))
    return found


# --- Reading folders


def unlabelled(
    root: Path, paths: Iterable[str], *, exif: bool = False, views: Mapping[int, View] | None = None
) -> ImageList:
    paths = tuple(paths)
    labels = np.full(len(paths), UNLABELLED, dtype=np.int64)
    return ImageList(root, paths, labels, exif=exif, views=views or {})


def numbers(paths: Sequence[str], pattern: str, folder: Path) -> list[int]:
    """Return the number in each file name; ValueError for a name unlike the pattern, and duplicate names."""
    found = []
    for path in paths:
        match = re.fullmatch(pattern, Path(path).name, flags=re.IGNORECASE)
        if not match:
            raise ValueError(f"{folder}: the name {Path(path).name} should match {pattern}")
        found.append(int(match[1]))
    by_stem(paths, folder)
    return found


def by_stem(paths: Sequence[str], folder: Path) -> dict[str, int]:
    """Return {file name without suffix: index}; ValueError for duplicates in suffix or sub-folder."""
    found = {}
    for index, path in enumerate(paths):
        stem = os.path.splitext(os.path.basename(path))[0]
        if found.setdefault(stem, index) != index:
            base = os.path.realpath(folder)
            first, second = os.path.relpath(paths[found[stem]], base), os.path.relpath(path, base)
            raise ValueError(f"{folder} holds {stem} twice: {first} and {second}")
    return found


def files_of(folder: Path, name: str) -> list[str]:
    """Return the images of a benchmark's folder; FileNotFoundError or ValueError name both."""
    paths = image_files(check_folder(folder, name))
    if not paths:
        raise ValueError(f"{name}: {folder} holds no images")
    return paths


def files_below(root: Path, folders: Iterable[str], name: str) -> tuple[list[str], dict[str, int]]:
    """Return the images of a benchmark's folders, and {path below root, with slashes: index}.

    Raises as `files_of`.
    """
    paths, index_of = [], {}
    for inside in folders:
        start = len(os.path.join(os.path.realpath(root / inside), ""))
        for path in files_of(root / inside, name):
            index_of[f"{inside}/{path[start:].replace(os.sep, '/')}"] = len(paths)
            paths.append(path)
    return paths, index_of


def complete_groups(
    groups: Mapping[int, list], faults: Mapping[int, str], *, where: str, incomplete: str
) -> dict[int, list]:
    """Return the groups {number: images} without fault, by number.

    faults: {number: what a group lacks}
    where: what an error and the line about groups that are left out begin with
    incomplete: `raise`, ValueError for the first incomplete group, or `skip`, leave them out with a line
    Raises ValueError also if every group is incomplete.
    """
    first = next(iter(faults.values()), "")
    if faults and incomplete == "raise":
        raise ValueError(f"{where}: {first}; with on_unreadable=skip, incomplete groups are left out")
    if len(faults) == len(groups):
        raise ValueError(f"{where}: all {len(groups)} groups are incomplete: {first}")
    if faults:
        others = " and others" if len(faults) > 1 else ""
        say_once(
            f"{where}: {len(faults)} of {len(groups)} groups are incomplete and left out: {first}{others}"
        )
    return {number: members for number, members in sorted(groups.items()) if number not in faults}


def located(names: Iterable[str], of_stem: dict[str, int], folder: Path, listing: Path) -> list[int]:
    """Return the indices of named images; FileNotFoundError for missing ones, with the first."""
    names = list(names)
    missing = [name for name in dict.fromkeys(names) if name not in of_stem]
    if missing:
        missed = f"{len(missing)} images that are not in {folder}, the first is {missing[0]!r}"
        raise FileNotFoundError(f"{listing} names {missed}")
    return [of_stem[name] for name in names]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Read the non-blank rows of a csv file as (line number, stripped cells); ValueError for other files.

    Cells are separated by commas, or by the semicolons or tabs of a first line without commas.
    """
    text = read_text(path)
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator(text))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: this is not a line of a csv file: {error}"
        ) from None
    rows = [(number, row) for number, row in rows if any(row) and row[0].lower() != "sep="]
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def separator(text: str) -> str:
    """The separator of cells, by the first line of a csv file; Excel may write it as sep=;."""
    first = split_lines(text.lstrip())[0]
    if given := re.fullmatch("sep=(.)", first, re.IGNORECASE):
        return given[1]
    unquoted = re.sub('"[^"]*"', "", first)
    return next((mark for mark in ",;\t" if mark in unquoted), ",")


def named_columns(path: Path, header: list[str], names: tuple[str, ...]) -> list[int]:
    """Return the positions of the named columns of a csv; ValueError if one is missing."""
    found = columns(header, names)
    if found is None:
        wanted, got = ",".join(names), shown(",".join(header))
        raise ValueError(f"{path}: the first line should name the columns {wanted}, got {got}")
    return found


def columns(header: list[str], names: tuple[str, ...]) -> list[int] | None:
    """Return the positions of the named columns in a header; None if one is missing."""
    found = [cell.lower() for cell in header]
    return [found.index(name) for name in names] if set(names) <= set(found) else None
