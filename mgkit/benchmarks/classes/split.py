"""Test images of classes that are not those of training: text lists, positives, checks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgkit.benchmarks.published import Images, missing_images
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_below, located, unlabelled
from mgkit.machine.files import read_lines
from mgkit.machine.records import shown


@dataclass(frozen=True)
class TestImages:
    """The test images that a list names.

    names: paths below the set's folder, with slashes (N)
    classes: class number of each (N)
    listing: the file that names them
    """

    __test__ = False  # no test, though its name begins like one

    names: tuple[str, ...]
    classes: tuple[int, ...]
    listing: Path


def class_set(
    name: str, root: Path, folders: Sequence[str], test: TestImages, recalls: tuple[int, ...]
) -> RetrievalSet:
    """Make every test image a query, with the other test images of its class as positives.

    folders: those below root that hold the images
    Raises FileNotFoundError for a folder or an image that is missing.
    """
    paths, index_of = files_below(root, folders, name)
    indices = located(test.names, index_of, root, test.listing)
    images, every = unlabelled(root, [paths[i] for i in indices]), np.arange(len(indices))
    positives = others_of_class(np.array(test.classes))
    return RetrievalSet(name, images, every, every, positives, "Recall@1", recalls=recalls)


def others_of_class(classes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the indices of the other images of each image's class; classes: [N]."""
    order = np.argsort(classes, kind="stable")
    borders = np.flatnonzero(np.diff(classes[order])) + 1
    others = {i: same[same != i] for same in np.split(order, borders) for i in same.tolist()}
    return tuple(others[i] for i in range(len(classes)))


# --- Text lists


def spaced_rows(path: Path, fields: Sequence[str], *, above: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of the non-blank lines of a text file with cells between spaces.

    fields: names of the cells
    above: number of lines to pass over
    Raises FileNotFoundError for a missing file, ValueError for a line with fewer or more cells.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: it should list {' '.join(fields)}")
    for number, line in enumerate(read_lines(path)[above:], start=above + 1):
        cells = line.split()
        if cells and len(cells) != len(fields):
            raise ValueError(f"{path}, line {number}: {shown(line)} should be {' '.join(fields)}")
        if cells:
            yield number, cells


def whole_number(path: Path, line: int, cell: str, field: str) -> int:
    """Return a cell as an integer; ValueError that names file, line and field for another."""
    if not (cell.isascii() and cell.isdigit() and len(cell) < 10):
        raise ValueError(f"{path}, line {line}: {field} should be a whole number, got {shown(cell)}")
    return int(cell)


def checked_names(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a list; ValueError for none, or for one that is there twice."""
    if not names:
        raise ValueError(f"{path} names no test images")
    seen = set()
    twice = next((name for name in names if name in seen or seen.add(name)), None)
    if twice is not None:
        raise ValueError(f"{path} names {shown(twice)} twice")
    return tuple(names)


# --- Check


def compare_test(images: int, classes: int, test: TestImages, found: Images) -> Iterator[str]:
    """Yield findings on test images that are missing, and on numbers that are not the published ones.

    images, classes: published numbers of test images and of their classes
    """
    yield from missing_images(test.names, found)
    numbers = len(test.names), len(set(test.classes))
    if numbers != (images, classes):
        listed = "names {:,} test images of {:,} classes".format(*numbers)
        yield f"{test.listing.name} {listed}, published are {images:,} of {classes:,}"
