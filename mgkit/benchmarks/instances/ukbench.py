"""UKBench: 2,550 objects with four photographs each."""

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from mgkit.benchmarks.published import Archive, Benchmark, images_to, numbered
from mgkit.benchmarks.retrieval_set import RetrievalSet, complete_groups, files_of, numbers, unlabelled

UKBENCH_URL = "https://archive.org/download/ukbench/ukbench.zip"

UKBENCH = Benchmark(
    {"full": 10_200},
    (f"ukbench{'[0-9]' * 5}.jpg",),
    partial(numbered, {"full": ("ukbench{:05d}.jpg", 10_200)}),
    (Archive((UKBENCH_URL,), partial(images_to, "full", out_of="full"), ("full",)),),
)


def ukbench(root: str | Path, *, incomplete: str = "raise") -> RetrievalSet:
    """Read UKBench, `full/ukbenchNNNNN.jpg`: four consecutive numbers are an object; all images are queries.

    incomplete: what to do with an object without four images: `raise` ValueError, or `skip` its images, with
    a line
    """
    folder = Path(root) / "full"
    paths = files_of(folder, "ukbench")
    objects = defaultdict(list)
    for number, path in sorted(zip(numbers(paths, r"ukbench(\d{5})\.jpe?g", folder), paths, strict=True)):
        objects[number // 4].append(path)
    faults = {
        number: f"object {number} (from ukbench{4 * number:05d}.jpg) has {len(members)} images, not 4"
        for number, members in objects.items()
        if len(members) != 4
    }
    whole = complete_groups(objects, faults, where=f"ukbench: {folder}", incomplete=incomplete)
    images = unlabelled(folder, [path for members in whole.values() for path in members])
    every = np.arange(len(images))
    of_object = every.reshape(-1, 4)
    positives = tuple(of_object[i // 4][of_object[i // 4] != i] for i in every)
    return RetrievalSet("ukbench", images, every, every, positives, "score")
