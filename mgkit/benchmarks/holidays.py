"""INRIA Holidays: 500 groups of photographs, the first image of each is the query."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from mgkit.benchmarks.published import INRIA, Archive, Benchmark, Companion, Images, images_to, some
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_of, numbers, unlabelled
from mgkit.data.decoding import View

UPRIGHT = "holidays-rotate.yaml"


def holidays(root: str | Path) -> RetrievalSet:
    """INRIA Holidays, `jpg/1NNNNN.jpg`: group = number // 100, its ..00.jpg is the query, the others are the positives.

    The database is all images, a query left out of its own ranking. The images that `holidays-rotate.yaml` lists are turned
    upright, as in the paper. Raises ValueError for a group without its query or without a positive.
    """
    root = Path(root)
    folder = root / "jpg"
    paths = files_of(folder, "holidays")
    number_of = numbers(paths, r"(\d{6})\.jpe?g", folder)
    groups = defaultdict(list)
    for index, number in enumerate(number_of):
        groups[number // 100].append((number, index))
    queries, positives = [], []
    for group, members in sorted(groups.items()):
        members.sort()
        if members[0][0] % 100:
            raise ValueError(f"holidays: group {group} of {folder} lacks its query {group}00.jpg")
        if len(members) < 2:
            raise ValueError(f"holidays: group {group} of {folder} has only its query")
        queries.append(members[0][1])
        positives.append(np.array([index for _, index in members[1:]]))
    images = unlabelled(folder, paths, views=upright_views(root, number_of))
    return RetrievalSet("holidays", images, np.array(queries), np.arange(len(paths)), tuple(positives))


def upright_views(root: Path, number_of: Sequence[int]) -> dict[int, View]:
    """The views of the images, given by their numbers, that the list in Holidays' folder turns; without a list a line says so."""
    listed = root / UPRIGHT
    if not listed.is_file():
        if not (root.parent / "mini.json").is_file():  # the embedded set is drawn upright
            print(
                f"holidays: no {UPRIGHT} in {root}, so images are evaluated as shot, not upright as in the paper; "
                "`python -m mgkit.benchmarks fetch holidays` gets it"
            )
        return {}
    rotations = read_rotations(listed)
    return {index: View(rotations[n]) for index, n in enumerate(number_of) if n in rotations}


def read_rotations(path: Path) -> dict[int, int]:
    """Holidays' upright list, `"100600.jpg": 90`, as {image number: degrees clockwise}.

    Raises ValueError, naming the file, for one that is no such mapping.
    """
    try:
        listed = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(listed, dict):
        raise ValueError(f'{path} should map file names to degrees ("100600.jpg": 90)')
    rotations = {}
    for name, degrees in listed.items():
        number = re.fullmatch(r"(\d{6})\.jpe?g", str(name), flags=re.IGNORECASE)
        if not number or type(degrees) is not int or degrees not in (90, 180, 270):
            raise ValueError(f"{path}: {name!r}: {degrees!r} is no image turned by 90, 180 or 270 degrees")
        rotations[int(number[1])] = degrees
    return rotations


def groups_of_holidays(folder: Path, images: Images) -> Iterator[str]:
    """A group is what has the first four digits in common; its image ..00 is the query, the others are the answers."""
    groups = Counter(name[:4] for name in images["jpg"])
    if groups and len(groups) != 500:
        yield f"{len(groups)} groups, published are 500"
    unasked = [f"{group}00.jpg" for group in groups if f"{group}00.jpg" not in images["jpg"]]
    if unasked:
        yield f"groups without their query: {some(unasked)}"
    alone = [f"{group}00.jpg" for group, number in groups.items() if number == 1]
    if alone:
        yield f"groups of one image: {some(alone)}"


MULTIGRAIN = "https://raw.githubusercontent.com/facebookresearch/multigrain"
MULTIGRAIN_VERSIONS = ("master", "main", "53c5ccf39e936a996691f0f278f43abd5b81acce")
ROTATION = "multigrain/datasets/holidays-rotate.yaml"


def holidays_archive(name: str) -> Archive:
    urls = (f"{INRIA}/data2/holidays/{name}", f"ftp://ftp.inrialpes.fr/pub/lear/douze/data/{name}")
    return Archive(urls, partial(images_to, "jpg"), ("jpg",))


HOLIDAYS = Benchmark(
    {"jpg": 1_491},
    (f"1{'[0-9]' * 5}.jpg",),
    groups_of_holidays,
    tuple(holidays_archive(name) for name in ("jpg1.tar.gz", "jpg2.tar.gz")),
    (
        Companion(
            "holidays-rotate.yaml",
            "without which images are not turned upright",
            tuple(f"{MULTIGRAIN}/{branch}/{ROTATION}" for branch in MULTIGRAIN_VERSIONS),
        ),
    ),
)
