"""INRIA Copydays: originals and their cropped, compressed and strongly edited copies."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from mgkit.benchmarks.published import INRIA, Archive, Benchmark, Images, images_to, some
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_of, numbers, unlabelled
from mgkit.data.folders import list_folder
from mgkit.data.images import ImageList

LEVEL_KINDS = ("crops", "jpegqual")
COPYDAYS_NAME = r"(\d{4})\d*\.jpe?g"  # the first four digits say which original


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


def levels_of_copydays(folder: Path, images: Images) -> Iterator[str]:
    """Every level has the originals, known by the first four digits; strong copies have their originals."""
    number = {each: {name[:4] for name in names} for each, names in images.items()}
    without = number["strong"] - number["original"]
    if without:
        yield f"missing in original/, though strong/ has copies: {some(f'{each}00.jpg' for each in without)}"
    for each in images:
        missing = number["original"] - number[each]
        if missing and images[each] and each != "strong":
            yield f"missing in {each}/: {some(f'{each}00.jpg' for each in missing)}"


def levels_to(folder: str, path: str) -> str | None:
    """Places `.../<number>/<name>.jpg` of an archive in `folder/<number>/`."""
    level = PurePosixPath(path).parent.name
    return images_to(f"{folder}/{level}", path) if level.isdigit() else None


COPYDAYS_MIRROR = "https://dl.fbaipublicfiles.com/vissl/datasets"
CROPS = tuple(f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80))
QUALITIES = tuple(f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75))


def copydays_archive(
    kind: str, place: Callable, fills: tuple[str, ...], sha256: str | None = None
) -> Archive:
    """The mirror has, and first, those whose hash is known."""
    name = f"copydays_{kind}.tar.gz"
    mirrors = (f"{COPYDAYS_MIRROR}/{name}",) if sha256 else ()
    return Archive(
        (*mirrors, f"{INRIA}/data2/holidays/{name}", f"{INRIA}/data/holidays/{name}"), place, fills, sha256
    )


COPYDAYS = Benchmark(
    {"original": 157, "strong": 229} | dict.fromkeys((*CROPS, *QUALITIES), 157),
    (f"{'[0-9]' * 6}.jpg",),
    levels_of_copydays,
    (
        copydays_archive(
            "original",
            partial(images_to, "original"),
            ("original",),
            "8b85b7914fd0145bc258bde3440f6a622243ca91ee085fe2025ce7bdeb0bfb8e",
        ),
        copydays_archive(
            "strong",
            partial(images_to, "strong"),
            ("strong",),
            "7852c64aa4a37e8329ce08159fc947c16f09c66737db0a2479a90fc9ae40760c",
        ),
        copydays_archive("crop", partial(levels_to, "crops"), CROPS),
        copydays_archive("jpeg", partial(levels_to, "jpegqual"), QUALITIES),
    ),
)
