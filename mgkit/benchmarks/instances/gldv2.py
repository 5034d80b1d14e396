"""Google Landmarks v2: which of 761,757 images show the landmark of the query?"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np

from mgkit.benchmarks.published import Archive, Benchmark, Companion, Images, check_lists, missing_images
from mgkit.benchmarks.retrieval_set import (
    RetrievalSet,
    by_stem,
    columns,
    files_of,
    located,
    read_rows,
    unlabelled,
)
from mgkit.machine.records import shown

SOLUTION = "retrieval_solution_v2.1.csv"
SOLUTION_COLUMNS = ("id", "images", "usage")
USAGES = ("Private", "Public")  # the queries of the test and those of validation; others are ignored
CUTOFF = 100  # of mAP@100
SERVER = "https://s3.amazonaws.com/google-landmark"

Solution = dict[str, dict[str, tuple[str, ...]]]  # usage -> query -> its images of the index, by id


def read_solution(path: Path) -> Solution:
    """Read rows of id, images (ids between spaces) and Usage; queries of Usage `Ignored` are left out.

    Raises FileNotFoundError for a missing file; ValueError for a missing header, a wrong row, or an id that
    is listed twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"gldv2: {path} does not exist: it is the ground truth")
    rows = read_rows(path)
    at = columns(rows[0][1], SOLUTION_COLUMNS)
    if at is None:
        got = shown(",".join(rows[0][1]))
        raise ValueError(f"{path}: the first line should name the columns id,images,Usage, got {got}")
    solution, seen = {usage: {} for usage in USAGES}, set()
    for number, row in rows[1:]:
        query, images, usage = (row[k] if k < len(row) else "" for k in at)
        if not query or query in seen or usage not in (*USAGES, "Ignored"):
            wanted = "an id that is new, images, and Public, Private or Ignored"
            raise ValueError(f"{path}, line {number}: {shown(','.join(row))} should be {wanted}")
        seen.add(query)
        if usage in USAGES:
            solution[usage][query] = tuple(dict.fromkeys(images.split()))
    if not any(solution.values()):
        raise ValueError(f"{path} lists no Public or Private query")
    return solution


def solution_of(root: Path) -> Solution:
    """Read the ground truth in the set's folder; raises as `read_solution`."""
    return read_solution(root / SOLUTION)


def compare_solution(solution: Solution, images: Images) -> Iterator[str]:
    """Yield a finding on queries and positives that are missing."""
    wanted = {"test": chain(*solution.values()), "index": chain(*chain(*map(dict.values, solution.values())))}
    listed = (place_of(inside, image) for inside, ids in wanted.items() for image in ids)
    yield from missing_images(listed, images)


def place_of(inside: str, image: str) -> str:
    """Return the path of an image: the first three characters of its id are folders."""
    return "/".join((inside, *image[:3], f"{image}.jpg"))


def images_archive(inside: str, number: int) -> Archive:
    """Describe `images_<number>.tar`, which holds `<a>/<b>/<c>/<id>.jpg`."""
    name = f"images_{number:03d}.tar"
    url = f"{SERVER}/{inside}/{name}"
    return Archive((url,), partial(landmark_to, inside), (inside,), stored=f"gldv2_{inside}_{name}")


def landmark_to(inside: str, path: str) -> str | None:
    """Place an image of an archive by its id."""
    image = PurePosixPath(path)
    kept = image.suffix.lower() == ".jpg" and not image.name.startswith(".")
    return place_of(inside, image.stem) if kept else None


GLDV2 = Benchmark(
    {"index": 761_757, "test": 117_577},
    (f"{'[0-9a-f]' * 16}.jpg",),
    partial(check_lists, solution_of, compare_solution),
    tuple(
        images_archive(inside, k) for inside, number in (("index", 100), ("test", 20)) for k in range(number)
    ),
    (Companion(SOLUTION, "the ground truth", (f"{SERVER}/ground_truth/{SOLUTION}",)),),
    depth=3,
    beside=("*.csv", "train"),
)


def gldv2(root: str | Path) -> list[RetrievalSet]:
    """Read Google Landmarks v2 as `gldv2 private` (test) and `gldv2 public` (validation), by mAP@100.

    The images are `index/<a>/<b>/<c>/<id>.jpg` and `test/` alike, where a, b and c begin the id; the
    database is the index. The sets share their images: the index and the queries with positives. Raises
    FileNotFoundError for missing images, and as `read_solution`.
    """
    root = Path(root)
    listing = root / SOLUTION
    solution = solution_of(root)
    index, test = (files_of(root / part, "gldv2") for part in ("index", "test"))
    of_image = by_stem(index, root / "index")
    named = [query for queries in solution.values() for query in queries]
    at = located(named, by_stem(test, root / "test"), root / "test", listing)
    images = unlabelled(root, [*index, *(test[i] for i in at)])
    of_query = {query: len(index) + i for i, query in enumerate(named)}
    database = np.arange(len(index))
    sets = []
    for usage, queries in solution.items():
        found = [located(ids, of_image, root / "index", listing) for ids in queries.values()]
        positives = tuple(np.array(sorted(each), dtype=np.int64) for each in found)
        indices = np.array([of_query[query] for query in queries], dtype=np.int64)
        name = f"gldv2 {usage.lower()}"
        sets.append(RetrievalSet(name, images, indices, database, positives, "mAP@k", cutoff=CUTOFF))
    return [one for one in sets if len(one.queries)]
