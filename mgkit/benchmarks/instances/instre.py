"""INSTRE: objects alone (S1, S2) and in pairs (M), by the protocol of Iscen et al. (CVPR 2017)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from mgkit.benchmarks.mat_files import read_mat
from mgkit.benchmarks.published import Archive, Benchmark, Companion, Images, check_lists, missing_images
from mgkit.benchmarks.retrieval_set import RetrievalSet, files_below, located, unlabelled
from mgkit.data.decoding import View

PARTS = {"INSTRE-S1": 11_011, "INSTRE-S2": 12_059, "INSTRE-M": 5_473}
TRUTH = "gnd_instre.mat"
LONGEST_SIDE = 2**16  # px, the limit of JPEG
SERVER = "ftp://ftp.irisa.fr/local/texmex/corpus/instre"


@dataclass(frozen=True)
class InstreGroundTruth:
    """Content of `gnd_instre.mat` with N database images and Q queries.

    images, queries: paths, as `INSTRE-S1/01a_canada_book/001.jpg`
    positives: indices into `images` for each query
    boxes: (x1, y1, x2, y2) of each query (px)
    """

    images: tuple[str, ...]
    queries: tuple[str, ...]
    positives: tuple[np.ndarray, ...]
    boxes: tuple[tuple[float, ...], ...]


def read_instre_gnd(path: Path) -> InstreGroundTruth:
    """Read `gnd_instre.mat`: `imlist`, `qimlist`, and `gnd` with positives (from 1) and box of each query.

    Raises FileNotFoundError for a missing file; ValueError, naming it, for one that is damaged or
    inconsistent.
    """
    return read_mat(path, "the ground truth of INSTRE", ["imlist", "qimlist", "gnd"], ground_truth)


def ground_truth(found: dict[str, np.ndarray]) -> InstreGroundTruth:
    """Convert the content of the file; ValueError where it is inconsistent."""
    images, queries = (image_names(found[key], key) for key in ("imlist", "qimlist"))
    answers = [tuple(answer)[:2] for answer in found["gnd"].tolist()]  # positives and box of each query
    if len(answers) != len(queries):
        raise ValueError(f"gnd has {len(answers)} entries, for {len(queries)} queries")
    positives = tuple(
        indices(query, of_query, len(images)) for query, (of_query, _) in zip(queries, answers, strict=True)
    )
    boxes = tuple(box(query, bounds) for query, (_, bounds) in zip(queries, answers, strict=True))
    return InstreGroundTruth(images, queries, positives, boxes)


def image_names(names: np.ndarray, key: str) -> tuple[str, ...]:
    """Return a list of distinct names; ValueError for others."""
    listed = names.tolist()
    for name in listed:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{key} should be a list of names, and holds {name!r}")
    if len(set(listed)) < len(listed):
        raise ValueError(f"{key} names an image twice")
    return tuple(name.strip() for name in listed)


def indices(query: str, numbers: object, images: int) -> np.ndarray:
    """Return a query's positives, numbered from 0; ValueError for a number that is not of an image."""
    found = np.atleast_1d(np.asarray(numbers, dtype=np.float64)).ravel()
    wrong = found[(found < 1) | (found > images) | (found != np.floor(found))]
    if len(wrong) or not len(found) or len(np.unique(found)) < len(found):
        what = f"{wrong[0]:g}" if len(wrong) else "no number, or one twice"
        raise ValueError(f"the positives of {query!r} hold {what}, not distinct numbers of 1..{images}")
    return np.sort(found.astype(np.int64) - 1)


def box(query: str, bounds: object) -> tuple[float, ...]:
    """Return the query's box x1, y1, x2, y2 (px); ValueError if it is empty."""
    found = tuple(np.asarray(bounds, dtype=np.float64).ravel().tolist())
    numbers = len(found) == 4 and all(math.isfinite(x) and abs(x) < LONGEST_SIDE for x in found)
    if not numbers or round(found[2]) <= round(found[0]) or round(found[3]) <= round(found[1]):
        raise ValueError(f"the box of {query!r} should be x1, y1, x2, y2 with x1 < x2, y1 < y2, got {found}")
    return found


# --- Record


def truth_of(root: Path) -> InstreGroundTruth:
    """Read the ground truth in the set's folder; raises as `read_instre_gnd`."""
    return read_instre_gnd(root / TRUTH)


def compare_truth(truth: InstreGroundTruth, images: Images) -> Iterator[str]:
    """Yield a finding on database images and queries that are missing."""
    yield from missing_images((*truth.images, *truth.queries), images)


def part_of(path: str) -> str | None:
    """Place the images and boxes of an archive where they are, from the folder of their part on."""
    parts = PurePosixPath(path).parts
    at = next((index for index, part in enumerate(parts) if part in PARTS), None)
    return None if at is None or parts[-1].startswith(".") else "/".join(parts[at:])


INSTRE = Benchmark(
    PARTS,
    ("*.jpg",),
    partial(check_lists, truth_of, compare_truth),
    (Archive((f"{SERVER}/instre.tar.gz",), part_of, tuple(PARTS)),),
    (Companion(TRUTH, "the queries and their ground truth", (f"{SERVER}/{TRUTH}",)),),
    depth=1,
    beside=("*.txt",),
)


# --- Reader


def instre(root: str | Path) -> RetrievalSet:
    """Read INSTRE: the database is imlist, the queries are qimlist, cropped to their boxes; mAP is measured.

    Raises FileNotFoundError for missing images, and as `read_instre_gnd`.
    """
    root = Path(root)
    truth = truth_of(root)
    paths, index_of = files_below(root, PARTS, "instre")
    at = located([*truth.images, *truth.queries], index_of, root, root / TRUTH)
    database, queries = np.split(np.arange(len(at)), [len(truth.images)])
    views = {query: View(box=bounds) for query, bounds in zip(queries.tolist(), truth.boxes, strict=True)}
    images = unlabelled(root, [paths[i] for i in at], views=views)
    return RetrievalSet("instre", images, queries, database, truth.positives)
