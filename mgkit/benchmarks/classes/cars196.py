"""Stanford Cars: makes and models of cars; the second half of the 196 classes is for tests."""

from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from mgkit.benchmarks.classes.split import TestImages, checked_names, class_set, compare_test
from mgkit.benchmarks.mat_files import read_mat
from mgkit.benchmarks.published import Benchmark, Companion, check_lists
from mgkit.benchmarks.retrieval_set import RetrievalSet

IMAGES, ANNOTATIONS = "car_ims", "cars_annos.mat"
# The layout in two parts: those of classification, both of which hold images of all classes.
PARTS = ("cars_train", "cars_test")
PART_ANNOTATIONS = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
FIRST_TEST_CLASS, LAST_CLASS = 99, 196
RECALLS = (1, 2, 4, 8)
WHAT = "the list of the images of Stanford Cars and their classes"


def annotated(field: str, found: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    """Return (name, class) of each image; ValueError for a name that is no text, or a class out of range."""
    rows = found["annotations"]
    names, numbers = rows[field].tolist(), rows["class"].tolist()
    for name, number in zip(names, numbers, strict=True):
        if not isinstance(name, str) or int(number) != number or not 1 <= number <= LAST_CLASS:
            raise ValueError(f"{name!r} of class {number!r} is not an image of class 1 to {LAST_CLASS}")
    return [(name, int(number)) for name, number in zip(names, numbers, strict=True)]


def test_of(listing: Path, rows: list[tuple[str, int]]) -> TestImages:
    """Return those of the images that are of a test class."""
    rows = [row for row in rows if row[1] >= FIRST_TEST_CLASS]
    names = checked_names(listing, [name for name, _ in rows])
    return TestImages(names, tuple(number for _, number in rows), listing)


def cars_test(root: Path) -> TestImages:
    """Read `cars_annos.mat`: the images in `car_ims/` of classes 99 to 196."""
    listing = root / ANNOTATIONS
    return test_of(listing, read_mat(listing, WHAT, ["annotations"], partial(annotated, "relative_im_path")))


def part_folder(root: Path, part: str) -> str:
    """Return the folder of a part's images below root; there are copies with a second folder of its name."""
    return f"{part}/{part}" if (root / part / part).is_dir() else part


def cars_test_in_parts(root: Path) -> TestImages:
    """Read the lists of `cars_train/` and `cars_test/`: the images in both of classes 99 to 196."""
    rows = []
    for part, name in zip(PARTS, PART_ANNOTATIONS, strict=True):
        listing = next(filter(Path.is_file, (root / name, root / "devkit" / name)), root / name)
        named = read_mat(listing, WHAT, ["annotations"], partial(annotated, "fname"))
        inside = part_folder(root, part)
        rows += [(f"{inside}/{PurePosixPath(image).name}", number) for image, number in named]
    return test_of(listing, rows)


CARS_IN_PARTS = Benchmark(
    dict(zip(PARTS, (8_144, 8_041), strict=True)),
    ("[0-9][0-9][0-9][0-9][0-9].jpg",),
    partial(check_lists, cars_test_in_parts, partial(compare_test, 8_131, 98)),
    companions=(
        Companion(PART_ANNOTATIONS[0], "the classes of the images"),
        Companion(f"**/{PART_ANNOTATIONS[1]}", "the classes of the images"),
    ),
    depth=1,
    beside=("devkit", "*.mat"),
)
CARS196 = Benchmark(
    {IMAGES: 16_185},
    ("[0-9][0-9][0-9][0-9][0-9][0-9].jpg",),
    partial(check_lists, cars_test, partial(compare_test, 8_131, 98)),
    companions=(Companion(ANNOTATIONS, "the classes of the images"),),
    by_hand="its own server does not offer it any more; from a copy, put car_ims/ and cars_annos.mat, or "
    "cars_train/, cars_test/, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat, below",
    other=CARS_IN_PARTS,
)


def cars196(root: str | Path) -> RetrievalSet:
    """Read the images of classes 99 to 196 of Stanford Cars: each is a query, without itself in its ranking.

    They are in `car_ims/`, listed by `cars_annos.mat`, or in `cars_train/` and `cars_test/`, listed by
    `devkit/cars_train_annos.mat` and `cars_test_annos_withlabels.mat` (there or in `devkit/`). Recall@1 is
    measured, and Recall@2, @4 and @8. Raises FileNotFoundError for a missing list, folder or image,
    ValueError for a list that is damaged or another.
    """
    root = Path(root)
    if CARS196.layout_of(root) is CARS_IN_PARTS:
        folders = [part_folder(root, part) for part in PARTS]
        return class_set("cars196", root, folders, cars_test_in_parts(root), RECALLS)
    return class_set("cars196", root, [IMAGES], cars_test(root), RECALLS)
