"""UKBench: 2,550 objects with four photographs each."""

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from mgkit.benchmarks.published import Archive, Benchmark, images_to, numbered
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_of, numbers, unlabelled

UKBENCH_URL = "https://archive.org/download/ukbench/ukbench.zip"

UKBENCH = Benchmark(
    {"full": 10_200},
    (f"ukbench{'[0-9]' * 5}.jpg",),
    partial(numbered, {"full": ("ukbench{:05d}.jpg", 10_200)}),
    (Archive((UKBENCH_URL,), partial(images_to, "full", out_of="full"), ("full",)),),
)


def ukbench(root: str | Path) -> RetrievalSet:
    """Read UKBench, `full/ukbenchNNNNN.jpg`: four consecutive numbers are an object; all images are queries.

    Raises ValueError for an object without four images.
    """
    folder = Path(root) / "full"
    paths = files_of(folder, "ukbench")
    objects = defaultdict(list)
    for index, number in enumerate(numbers(paths, r"ukbench(\d{5})\.jpe?g", folder)):
        objects[number // 4].append(index)
    for number, members in sorted(objects.items()):
        if len(members) != 4:
            first = f"ukbench{4 * number:05d}.jpg"
            found = f"{len(members)} images of object {number} (from {first})"
            raise ValueError(f"ukbench: {folder} has {found}, not 4")
    positives = {i: np.array([j for j in members if j != i]) for members in objects.values() for i in members}
    images, every = unlabelled(folder, paths), np.arange(len(paths))
    return RetrievalSet("ukbench", images, every, every, tuple(positives[i] for i in every), "score")
