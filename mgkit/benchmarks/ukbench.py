"""UKBench: 2,550 objects with four photographs each."""

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from mgkit.benchmarks.published import Archive, Benchmark, images_to, numbered
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_of, numbers, unlabelled


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


UKBENCH = Benchmark(
    {"full": 10_200},
    (f"ukbench{'[0-9]' * 5}.jpg",),
    partial(numbered, {"full": ("ukbench{:05d}.jpg", 10_200)}),
    (
        Archive(
            ("https://archive.org/download/ukbench/ukbench.zip",),
            partial(images_to, "full", out_of="full"),
            ("full",),
        ),
    ),
)
