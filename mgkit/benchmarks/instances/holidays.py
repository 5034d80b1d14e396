"""INRIA Holidays: 500 groups of photographs, the first image of each is the query."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mgkit.benchmarks.published import INRIA, Archive, Benchmark, Companion, Images, abbreviated, images_to
from mgkit.benchmarks.retrieval_set import RetrievalSet, complete_groups, files_of, numbers, unlabelled
from mgkit.data.decoding import View
from mgkit.machine.printable import say_once
from mgkit.machine.records import read_yaml, shown

UPRIGHT = "holidays-rotate.yaml"
MULTIGRAIN = "https://raw.githubusercontent.com/facebookresearch/multigrain"
MULTIGRAIN_VERSIONS = ("master", "main", "53c5ccf39e936a996691f0f278f43abd5b81acce")


def check_groups(folder: Path, images: Images) -> Iterator[str]:
    """Yield findings on the groups: images with equal first four digits, of which ..00 is the query."""
    groups = Counter(name[:4] for name in images["jpg"])
    if groups and len(groups) != 500:
        yield f"{len(groups)} groups, published are 500"
    without_query = [f"{group}00.jpg" for group in groups if f"{group}00.jpg" not in images["jpg"]]
    if without_query:
        yield f"groups without their query: {abbreviated(without_query)}"
    single = [f"{group}00.jpg" for group, number in groups.items() if number == 1]
    if single:
        yield f"groups of one image: {abbreviated(single)}"


def holidays_archive(name: str) -> Archive:
    urls = (f"{INRIA}/data2/holidays/{name}", f"ftp://ftp.inrialpes.fr/pub/lear/douze/data/{name}")
    return Archive(urls, partial(images_to, "jpg"), ("jpg",))


HOLIDAYS = Benchmark(
    {"jpg": 1_491},
    (f"1{'[0-9]' * 5}.jpg",),
    check_groups,
    tuple(holidays_archive(name) for name in ("jpg1.tar.gz", "jpg2.tar.gz")),
    (
        Companion(
            UPRIGHT,
            "without which images are not turned upright",
            tuple(f"{MULTIGRAIN}/{version}/multigrain/datasets/{UPRIGHT}" for version in MULTIGRAIN_VERSIONS),
        ),
    ),
)


def holidays(root: str | Path, *, incomplete: str = "raise") -> RetrievalSet:
    """Read INRIA Holidays, `jpg/1NNNNN.jpg`: groups by number // 100, ..00 is the query of its group.

    incomplete: what to do with a group without query or without positives: `raise` ValueError, or `skip` its
    images, with a line

    The database is all other images. Images listed in `holidays-rotate.yaml` are turned upright, as in the
    paper.
    """
    root = Path(root)
    folder = root / "jpg"
    paths = files_of(folder, "holidays")
    of_group = defaultdict(list)
    for number, path in sorted(zip(numbers(paths, r"(\d{6})\.jpe?g", folder), paths, strict=True)):
        of_group[number // 100].append((number, path))
    faults = {}
    for group, members in of_group.items():
        if members[0][0] % 100:
            faults[group] = f"group {group} lacks its query {group}00.jpg"
        elif len(members) < 2:
            faults[group] = f"group {group} has only its query"
    groups = complete_groups(of_group, faults, where=f"holidays: {folder}", incomplete=incomplete)
    number_of, kept = zip(*(member for members in groups.values() for member in members), strict=True)
    ends = np.cumsum([len(members) for members in groups.values()])
    queries = np.array([0, *ends[:-1]])
    positives = tuple(np.arange(start + 1, end) for start, end in zip(queries, ends, strict=True))
    images = unlabelled(folder, kept, views=upright_views(root, number_of))
    return RetrievalSet("holidays", images, queries, np.arange(len(kept)), positives)


def upright_views(root: Path, number_of: Sequence[int]) -> dict[int, View]:
    """Return the views of the rotated images by index; print a line if their list is missing."""
    path = root / UPRIGHT
    if not path.is_file():
        if not (root.parent / "mini.json").is_file():  # the embedded set is upright
            say_once(
                f"holidays: no {UPRIGHT} in {root}: images are not turned upright as in the paper; "
                "`python -m mgkit.benchmarks fetch holidays` downloads it"
            )
        return {}
    rotations = read_rotations(path)
    return {index: View(rotations[n]) for index, n in enumerate(number_of) if n in rotations}


def read_rotations(path: Path) -> dict[int, int]:
    """Read a YAML mapping `"100600.jpg": 90` as {image number: degrees clockwise}; ValueError for others."""
    mapping = read_yaml(path)
    if not isinstance(mapping, dict):
        raise ValueError(f'{path} should map file names to degrees ("100600.jpg": 90)')
    rotations = {}
    for name, degrees in mapping.items():
        number = re.fullmatch(r"(\d{6})\.jpe?g", str(name), flags=re.IGNORECASE)
        if not number or type(degrees) is not int or degrees not in (90, 180, 270):
            raise ValueError(
                f"{path}: {shown(name)}: {shown(degrees)} is not an image and 90, 180 or 270 degrees"
            )
        rotations[int(number[1])] = degrees
    return rotations
