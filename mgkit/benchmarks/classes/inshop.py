"""In-Shop Clothes Retrieval of DeepFashion: photographs of clothes, queries apart from the gallery."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mgkit.benchmarks.classes.split import checked_names, spaced_rows, whole_number
from mgkit.benchmarks.published import Benchmark, Companion, Images, check_lists, missing_images
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_below, located, unlabelled
from mgkit.machine.files import read_lines
from mgkit.machine.records import shown

LIST = "Eval/list_eval_partition.txt"
FIELDS = ("image_name", "item_id", "evaluation_status")
STATUSES = ("train", "query", "gallery")
RECALLS = (1, 10, 20, 30)


@dataclass(frozen=True)
class Partition:
    """The images of `list_eval_partition.txt` that are not for training, by their path below the list's root.

    queries, gallery: {path: item}
    """

    queries: dict[str, str]
    gallery: dict[str, str]


def read_partition(listing: Path) -> Partition:
    """Read the number of images, a line of field names, then image, item and status of each image.

    Raises FileNotFoundError for a missing file; ValueError for a wrong line or number, an image that is
    listed twice, or a query without image of its item in the gallery.
    """
    rows = list(spaced_rows(listing, FIELDS, above=2))
    first = next(iter(read_lines(listing)), "").strip()
    number = whole_number(listing, 1, first, "the number of images")
    if number != len(rows):
        raise ValueError(f"{listing} says that it lists {number:,} images, and lists {len(rows):,}")
    checked_names(listing, [name for _, (name, _, _) in rows])
    of_status = {status: {} for status in STATUSES}
    for line, (name, item, status) in rows:
        if status not in of_status:
            wanted = ", ".join(STATUSES)
            raise ValueError(
                f"{listing}, line {line}: the status should be one of {wanted}, got {shown(status)}"
            )
        of_status[status][name] = item
    queries, gallery = of_status["query"], of_status["gallery"]
    if not queries:
        raise ValueError(f"{listing} names no query")
    items = set(gallery.values())
    alone = next((name for name, item in queries.items() if item not in items), None)
    if alone is not None:
        raise ValueError(f"{listing} has no image in the gallery for the query {shown(alone)}")
    return Partition(queries, gallery)


def partition_of(root: Path) -> Partition:
    """Read the list in a set's folder; raises as `read_partition`."""
    return read_partition(root / LIST)


def compare_partition(top: str, partition: Partition, images: Images) -> Iterator[str]:
    """Yield findings on images that are missing, and on numbers that are not the published ones."""
    listed = [*partition.queries, *partition.gallery]
    yield from missing_images((top + name for name in listed), images)
    numbers = len(partition.queries), len(partition.gallery)
    if numbers != (14_218, 12_612):
        counted = "names {:,} queries and {:,} gallery images".format(*numbers)
        yield f"{LIST} {counted}, published are 14,218 and 12,612"


def in_folder(top: str, other: Benchmark | None = None) -> Benchmark:
    """Build the record for images in `<top>img/`."""
    return Benchmark(
        {f"{top}img": 52_712},
        ("*.jpg",),
        partial(check_lists, partition_of, partial(compare_partition, top)),
        companions=(Companion(LIST, "the queries, the gallery and the items that they show"),),
        by_hand="from http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html, In-shop Clothes Retrieval, put "
        "Eval/list_eval_partition.txt and the content of Img/img.zip (img/, there or in Img/) below",
        depth=3,
        beside=("anno", "*.txt", "img*.zip"),
        other=other,
    )


INSHOP = in_folder("Img/", in_folder(""))


def inshop(root: str | Path) -> RetrievalSet:
    """Read In-Shop: the images of the query's item in the gallery are its positives.

    The images are in `img/` or in `Img/img/`. Recall@1 is measured, and Recall@10, @20 and @30. Raises
    FileNotFoundError for a missing folder or image, and as `read_partition`.
    """
    root = Path(root)
    partition, inside = partition_of(root), next(iter(INSHOP.layout_of(root).folders))
    paths, index_of = files_below(root, [inside], "inshop")
    names = [inside.removesuffix("img") + name for name in (*partition.gallery, *partition.queries)]
    at = located(names, index_of, root, root / LIST)
    database, queries = np.split(np.arange(len(at)), [len(partition.gallery)])
    of_item = defaultdict(list)
    for index, item in enumerate(partition.gallery.values()):
        of_item[item].append(index)
    positives = tuple(np.array(of_item[item]) for item in partition.queries.values())
    images = unlabelled(root, [paths[i] for i in at])
    return RetrievalSet("inshop", images, queries, database, positives, "Recall@1", recalls=RECALLS)
