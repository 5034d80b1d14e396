"""Caltech-UCSD Birds-200-2011: species of birds; the second hundred is for tests."""

from functools import partial
from pathlib import Path

from mgkit.benchmarks.classes.split import (
    TestImages,
    checked_names,
    class_set,
    compare_test,
    spaced_rows,
    whole_number,
)
from mgkit.benchmarks.published import Archive, Benchmark, Companion, check_lists, kept_from
from mgkit.benchmarks.retrieval_set import RetrievalSet

FOLDER = "CUB_200_2011"
IMAGES = f"{FOLDER}/images"
NAMES, CLASSES = f"{FOLDER}/images.txt", f"{FOLDER}/image_class_labels.txt"
FIRST_TEST_CLASS = 101  # of 200
RECALLS = (1, 2, 4, 8)
CUB_URL = f"https://data.caltech.edu/records/65de6-vp158/files/{FOLDER}.tgz"
CUB_SHA256 = "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081"


def cub_test(root: Path) -> TestImages:
    """Read `images.txt` (image, path) and `image_class_labels.txt` (image, class): classes 101 to 200."""
    listing, labels = root / NAMES, root / CLASSES
    class_of = {
        image: whole_number(labels, line, number, "class_id")
        for line, (image, number) in spaced_rows(labels, ("image_id", "class_id"))
    }
    names, classes = [], []
    for line, (image, path) in spaced_rows(listing, ("image_id", "image_name")):
        if image not in class_of:
            raise ValueError(f"{listing}, line {line}: {labels.name} has no class of image {image!r}")
        if class_of[image] >= FIRST_TEST_CLASS:
            names.append(f"{IMAGES}/{path}")
            classes.append(class_of[image])
    return TestImages(checked_names(listing, names), tuple(classes), listing)


CUB200 = Benchmark(
    {IMAGES: 11_788},
    ("*.jpg",),
    partial(check_lists, cub_test, partial(compare_test, 5_924, 100)),
    (Archive((CUB_URL,), partial(kept_from, FOLDER), (IMAGES,), CUB_SHA256),),
    (Companion(NAMES, "the names of the images"), Companion(CLASSES, "their classes")),
    depth=1,
    beside=("attributes", "parts", "*.txt", "readme*"),
)


def cub200(root: str | Path) -> RetrievalSet:
    """Read the images of classes 101 to 200 of CUB-200-2011: each is a query, without itself in its ranking.

    Recall@1 is measured, and Recall@2, @4 and @8. Raises FileNotFoundError for a missing list, folder or
    image, ValueError for a wrong line.
    """
    return class_set("cub200", Path(root), [IMAGES], cub_test(Path(root)), RECALLS)
