"""Holidays, UKBench, Copydays, revisited Oxford and Paris, DISC: read from the folders as they are distributed."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mgkit.annotations import read_pairs, read_rotations
from mgkit.data.decoding import View
from mgkit.data.folders import list_folder
from mgkit.data.images import ImageList
from mgkit.ground_truth import RetrievalSet, by_stem, files_of, numbers, unlabelled
from mgkit.revisited import read_revisited_gnd

UPRIGHT = "holidays-rotate.yaml"
LEVEL_KINDS = ("crops", "jpegqual")
COPYDAYS_NAME = r"(\d{4})\d*\.jpe?g"  # the first four digits say which original


def holidays(root: str | Path) -> RetrievalSet:
    """INRIA Holidays, `jpg/1NNNNN.jpg`: group = number // 100, its ..00.jpg is the query, the others are the positives.

    The database is all images, a query left out of its own ranking. The images that `holidays-rotate.yaml` lists are turned
    upright, as in the paper. Raises ValueError for a group without its query or without a positive.
    """
    root = Path(root)
    folder = root / "jpg"
    paths = files_of(folder, "holidays")
    number_of = numbers(paths, r"(\d{6})\.jpe?g", folder)
    groups = defaultdict(list)
    for index, number in enumerate(number_of):
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
    images = unlabelled(folder, paths, views=upright_views(root, number_of))
    return RetrievalSet("holidays", images, np.array(queries), np.arange(len(paths)), tuple(positives))


def upright_views(root: Path, number_of: Sequence[int]) -> dict[int, View]:
    """The views of the images, given by their numbers, that the list in Holidays' folder turns; without a list a line says so."""
    listed = root / UPRIGHT
    if not listed.is_file():
        if not (root.parent / "mini.json").is_file():  # the embedded set is drawn upright
            print(
                f"holidays: no {UPRIGHT} in {root}, so images are evaluated as shot, not upright as in the paper; "
                "`python -m mgkit.benchmarks fetch holidays` gets it"
            )
        return {}
    rotations = read_rotations(listed)
    return {index: View(rotations[n]) for index, n in enumerate(number_of) if n in rotations}


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
    """Copydays, every image of `strong/` a query against `original/` and distractors (CD10k, with the paper's 10,000).

    Raises ValueError for a copy whose original is missing, two originals of one number, or two files of one name.
    """
    return sets_of_copies(Path(root), [Path("strong")], distractors)[0]


def copydays_levels(root: str | Path, *, distractors: ImageList | None = None) -> list[RetrievalSet]:
    """A set for each level of cropping, `crops/<percent>/`, and of compression, `jpegqual/<quality>/`: its images are the queries.

    All share their images. Raises FileNotFoundError where there is no level, ValueError as `copydays`.
    """
    return sets_of_copies(Path(root), levels(Path(root)), distractors)


def copydays_all(root: str | Path, *, distractors: ImageList | None = None) -> list[RetrievalSet]:
    """The strong set and those of the levels, which share their images; raises as both."""
    return sets_of_copies(Path(root), [Path("strong"), *levels(Path(root))], distractors)


def levels(root: Path) -> list[Path]:
    """The folders of Copydays' levels, from root, by kind and number; ValueError names one that is not named by a number."""
    found = []
    for kind in LEVEL_KINDS:
        folders = list_folder(str(root / kind)).folders if (root / kind).is_dir() else []
        for name in folders:
            if not re.fullmatch("[0-9]+", name):
                raise ValueError(f"copydays: {root / kind / name} should be named by a number")
        found += [Path(kind, name) for name in sorted(folders, key=int)]
    if not found:
        raise FileNotFoundError(
            f"copydays: {root} has no levels, {' or '.join(f'{k}/<number>/' for k in LEVEL_KINDS)}"
        )
    return found


def sets_of_copies(root: Path, folders: Sequence[Path], distractors: ImageList | None) -> list[RetrievalSet]:
    """A set for each folder of copies, all of the same images: originals, distractors, then the copies folder by folder."""
    originals = files_of(root / "original", "copydays")
    of_number = numbered_originals(originals, root / "original")
    extra = distractors.paths if distractors is not None else ()
    database = np.arange(len(originals) + len(extra))
    paths, asked = [*originals, *extra], []
    for folder in folders:
        copies = files_of(root / folder, "copydays")
        asked.append(
            (np.arange(len(paths), len(paths) + len(copies)), originals_of(copies, root, folder, of_number))
        )
        paths += copies
    own = {os.path.realpath(path) for path in [*paths[: len(originals)], *paths[len(database) :]]}
    shared = [path for path in extra if os.path.realpath(path) in own]
    if shared:
        raise ValueError(f"distractors: {shared[0]} is an image of Copydays itself, in {root}")
    images = unlabelled(root, paths)
    return [
        RetrievalSet(
            copydays_name(folder, len(extra)),
            images,
            queries,
            database,
            positives,
            distractors=database[len(originals) :],
            level=level_of(folder),
        )
        for folder, (queries, positives) in zip(folders, asked, strict=True)
    ]


def level_of(folder: Path) -> tuple[str, int] | None:
    """The edit and its strength of a level's folder; None for the strong copies."""
    return (folder.parts[0], int(folder.parts[1])) if folder.parts[0] in LEVEL_KINDS else None


def copydays_name(folder: Path, distractors: int) -> str:
    """`copydays`, with the number of distractors where there are any, or `copydays crops 10`."""
    if folder.parts[0] in LEVEL_KINDS:
        return " ".join(["copydays", *folder.parts])
    return f"copydays + {distractors} distractors" if distractors else "copydays"


def numbered_originals(paths: Sequence[str], folder: Path) -> dict[int, int]:
    """{first four digits: index} of Copydays' originals; ValueError names two of one number."""
    of_number = {}
    for index, number in enumerate(numbers(paths, COPYDAYS_NAME, folder)):
        first = of_number.setdefault(number, index)
        if first != index:
            pair = " and ".join(Path(paths[i]).name for i in (first, index))
            raise ValueError(f"copydays: {folder} has two originals of number {number}: {pair}")
    return of_number


def originals_of(
    copies: Sequence[str], root: Path, folder: Path, of_number: dict[int, int]
) -> tuple[np.ndarray, ...]:
    """For each copy the index of its original, the one answer; ValueError names a copy without."""
    found = numbers(copies, COPYDAYS_NAME, root / folder)
    for path, number in zip(copies, found, strict=True):
        if number not in of_number:
            raise ValueError(f"copydays: {path} has no original of number {number} in {root / 'original'}")
    return tuple(np.array([of_number[number]]) for number in found)


# --- Revisited Oxford and Paris


def revisited(root: str | Path, name: Literal["roxford5k", "rparis6k"]) -> list[RetrievalSet]:
    """Revisited Oxford or Paris, `gnd_<name>.pkl` and `jpg/`, as `<name> easy`, `medium` and `hard`; they share their images.

    The database is imlist; the queries are qimlist, cropped to their boxes, and no part of it. A query without positives stays,
    for the protocol to skip. Raises FileNotFoundError for missing images, and as `read_revisited_gnd`.
    """
    root = Path(root)
    listing, folder = root / f"gnd_{name}.pkl", root / "jpg"
    truth = read_revisited_gnd(listing)
    paths = files_of(folder, name)
    at = located([*truth.images, *truth.queries], by_stem(paths, folder), folder, listing)
    database, queries = np.split(np.arange(len(at)), [len(truth.images)])
    views = {query: View(box=box) for query, box in zip(queries.tolist(), truth.boxes, strict=True)}
    images = unlabelled(folder, [paths[i] for i in at], views=views)
    protocols = {
        "easy": (truth.easy, joined(truth.junk, truth.hard)),
        "medium": (joined(truth.easy, truth.hard), truth.junk),
        "hard": (truth.hard, joined(truth.junk, truth.easy)),
    }
    return [
        RetrievalSet(f"{name} {level}", images, queries, database, positives, junk=junk)
        for level, (positives, junk) in protocols.items()
    ]


def joined(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The indices of both, query by query."""
    return tuple(np.union1d(*pair) for pair in zip(some, others, strict=True))


def located(names: Iterable[str], of_stem: dict[str, int], folder: Path, listing: Path) -> list[int]:
    """The indices of named images; FileNotFoundError says how many are not in the folder, and the first."""
    names = list(names)
    missing = [name for name in dict.fromkeys(names) if name not in of_stem]
    if missing:
        raise FileNotFoundError(
            f"{listing} names {len(missing)} images that are not in {folder}, the first is {missing[0]!r}"
        )
    return [of_stem[name] for name in names]


# --- DISC


def disc21(root: str | Path) -> RetrievalSet:
    """DISC21, the Image Similarity Challenge of 2021: `queries/`, `references/`, and one `*ground*truth*.csv` beside them.

    The database is `references/`, the background `train/` where it exists. A csv that lists queries without a reference, as that
    of the 25,000 public development queries does, lists every query of its part: those are asked, and a line tells how many
    images of `queries/` are not. Where it lists matches alone, all of `queries/` is asked. A query may have several references.
    Raises FileNotFoundError for a missing folder, csv or listed image, ValueError for two csv files, two images of one id,
    and as `read_pairs`.
    """
    root = Path(root)
    references, queries = (files_of(root / part, "disc21") for part in ("references", "queries"))
    train = files_of(root / "train", "disc21") if (root / "train").is_dir() else []
    listing = ground_truth_csv(root)
    pairs = read_pairs(listing)
    of_reference, of_query = by_stem(references, root / "references"), by_stem(queries, root / "queries")
    located(sorted(set().union(*pairs.values())), of_reference, root / "references", listing)
    listed = sorted(located(pairs, of_query, root / "queries", listing))
    if not all(pairs.values()):
        if len(listed) < len(queries):
            print(f"disc21: {listing} lists {len(listed)} of {len(queries)} queries, the others are left out")
        queries = [queries[i] for i in listed]
    database, asked, background = np.split(
        np.arange(len(references) + len(queries) + len(train)), np.cumsum([len(references), len(queries)])
    )
    answers = [sorted(of_reference[each] for each in pairs.get(Path(path).stem, ())) for path in queries]
    return RetrievalSet(
        "disc21",
        unlabelled(root, [*references, *queries, *train]),
        asked,
        database,
        tuple(np.array(each, dtype=np.int64) for each in answers),
        "micro-AP",
        background=background,
    )


def ground_truth_csv(root: Path) -> Path:
    """The one `*ground*truth*.csv` of a folder; FileNotFoundError where there is none, ValueError for several."""
    found = sorted(path for path in root.glob("*ground*truth*.csv") if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"disc21: {root} holds no *ground*truth*.csv")
    if len(found) > 1:
        raise ValueError(f"disc21: {root} holds {' and '.join(path.name for path in found)}: leave one there")
    return found[0]
