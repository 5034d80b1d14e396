"""INRIA Copydays: originals and their cropped, compressed and strongly edited copies."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from mgkit.benchmarks.published import INRIA, Archive, Benchmark, Images, abbreviated, images_to
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_of, numbers, unlabelled
from mgkit.data.folders import list_folder

LEVEL_KINDS = ("crops", "jpegqual")
COPYDAYS_NAME = r"(\d{4})\d*\.jpe?g"  # the first four digits identify the original
COPYDAYS_MIRROR = "https://dl.fbaipublicfiles.com/vissl/datasets"
CROPS = tuple(f"crops/{percent}" for percent in (10, 15, 20, 30, 40, 50, 60, 70, 80))
QUALITIES = tuple(f"jpegqual/{quality}" for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75))
ORIGINAL_SHA256 = "8b85b7914fd0145bc258bde3440f6a622243ca91ee085fe2025ce7bdeb0bfb8e"
STRONG_SHA256 = "7852c64aa4a37e8329ce08159fc947c16f09c66737db0a2479a90fc9ae40760c"


def check_copies(folder: Path, images: Images) -> Iterator[str]:
    """Yield findings on strong copies without original, and originals missing in a level."""
    number = {inside: {name[:4] for name in names} for inside, names in images.items()}
    without = {f"{digits}00.jpg" for digits in number["strong"] - number["original"]}
    if without:
        yield f"missing in original/, though strong/ has copies: {abbreviated(without)}"
    for level in (inside for inside in images if images[inside] and inside != "strong"):
        missing = {f"{digits}00.jpg" for digits in number["original"] - number[level]}
        if missing:
            yield f"missing in {level}/: {abbreviated(missing)}"


def levels_to(folder: str, path: str) -> str | None:
    """Place `.../<number>/<name>.jpg` of an archive in `folder/<number>/`."""
    level = PurePosixPath(path).parent.name
    return images_to(f"{folder}/{level}", path) if level.isdigit() else None


def copydays_archive(
    kind: str, place: Callable, fills: tuple[str, ...], sha256: str | None = None
) -> Archive:
    name = f"copydays_{kind}.tar.gz"
    mirrors = (f"{COPYDAYS_MIRROR}/{name}",) if sha256 else ()  # which holds the archives of known hash
    urls = (*mirrors, f"{INRIA}/data2/holidays/{name}", f"{INRIA}/data/holidays/{name}")
    return Archive(urls, place, fills, sha256)


COPYDAYS = Benchmark(
    {"original": 157, "strong": 229} | dict.fromkeys((*CROPS, *QUALITIES), 157),
    (f"{'[0-9]' * 6}.jpg",),
    check_copies,
    (
        copydays_archive("original", partial(images_to, "original"), ("original",), ORIGINAL_SHA256),
        copydays_archive("strong", partial(images_to, "strong"), ("strong",), STRONG_SHA256),
        copydays_archive("crop", partial(levels_to, "crops"), CROPS),
        copydays_archive("jpeg", partial(levels_to, "jpegqual"), QUALITIES),
    ),
)


def copydays(root: str | Path) -> RetrievalSet:
    """Read Copydays: images of `strong/` are queries, `original/` is the database.

    The paper's CD10k has 10,000 distractors besides, see `with_distractors`. Raises ValueError for a copy
    without original, two originals of one number, or two files of one name.
    """
    return sets_of_copies(Path(root), [Path("strong")])[0]


def copydays_levels(root: str | Path) -> list[RetrievalSet]:
    """Read the levels of Copydays, `crops/<percent>/` and `jpegqual/<quality>/`: one set each.

    The sets share their images. Raises FileNotFoundError without any level, ValueError as `copydays`.
    """
    return sets_of_copies(Path(root), levels(Path(root)))


def copydays_all(root: str | Path) -> list[RetrievalSet]:
    """Read the strong copies and the levels, with shared images; raises as `copydays_levels`."""
    return sets_of_copies(Path(root), [Path("strong"), *levels(Path(root))])


def levels(root: Path) -> list[Path]:
    """Return the folders of levels relative to root, by kind and number; ValueError for other names."""
    found = []
    for kind in LEVEL_KINDS:
        folders = list_folder(str(root / kind)).folders if (root / kind).is_dir() else []
        for name in folders:
            if not re.fullmatch("[0-9]+", name):
                raise ValueError(f"copydays: the name of {root / kind / name} should be a number")
        found += [Path(kind, name) for name in sorted(folders, key=int)]
    if not found:
        wanted = " or ".join(f"{kind}/<number>/" for kind in LEVEL_KINDS)
        raise FileNotFoundError(f"copydays: {root} has no levels, {wanted}")
    return found


def sets_of_copies(root: Path, folders: Sequence[Path]) -> list[RetrievalSet]:
    """Read one set per folder of copies; all share the images: originals, then copies by folder."""
    originals = files_of(root / "original", "copydays")
    of_number = numbered_originals(originals, root / "original")
    paths, queries, positives = [*originals], [], []
    for folder in folders:
        copies = files_of(root / folder, "copydays")
        queries.append(np.arange(len(paths), len(paths) + len(copies)))
        positives.append(originals_of(copies, root, folder, of_number))
        paths += copies
    images, database = unlabelled(root, paths), np.arange(len(originals))
    sets = []
    for folder, query, answers in zip(folders, queries, positives, strict=True):
        name, level = "copydays", None
        if folder.parts[0] in LEVEL_KINDS:
            name, level = " ".join([name, *folder.parts]), (folder.parts[0], int(folder.parts[1]))
        sets.append(RetrievalSet(name, images, query, database, answers, level=level))
    return sets


def numbered_originals(paths: Sequence[str], folder: Path) -> dict[int, int]:
    """Return {first four digits: index} of the originals; ValueError for two of one number."""
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
    """Return the index of each copy's original, its only positive; ValueError for a copy without."""
    found = numbers(copies, COPYDAYS_NAME, root / folder)
    for path, number in zip(copies, found, strict=True):
        if number not in of_number:
            raise ValueError(f"copydays: {path} has no original of number {number} in {root / 'original'}")
    return tuple(np.array([of_number[number]]) for number in found)
