"""DISC21, the Image Similarity Challenge of 2021."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mgkit.benchmarks.published import Benchmark, Companion, numbered
from mgkit.benchmarks.retrieval_set import (
    RetrievalSet,
    by_stem,
    columns,
    files_of,
    located,
    read_rows,
    unlabelled,
)
from mgkit.machine.printable import say_once
from mgkit.machine.records import shown

PAIR_COLUMNS = ("query_id", "reference_id")
LISTS = "https://github.com/facebookresearch/isc2021/tree/main/list_files"
SUBSET = "subset_1_ground_truth.csv"  # of LISTS: the pairs of the 10k subset
NAME_FORMATS = {  # folder: (format of the names, number of images)
    "queries": ("Q{:05d}.jpg", 50_000),
    "references": ("R{:06d}.jpg", 1_000_000),
    "train": ("T{:06d}.jpg", 1_000_000),
}

DISC21 = Benchmark(
    {folder: number for folder, (_, number) in NAME_FORMATS.items()},
    tuple(f"{letter}{'[0-9]' * digits}.jpg" for letter, digits in (("q", 5), ("r", 6), ("t", 6))),
    partial(numbered, NAME_FORMATS),
    companions=(Companion("*ground*truth*.csv", "the ground truth"),),
    by_hand="accept the terms at https://ai.meta.com/datasets/disc21-dataset/, then put the development "
    "queries in queries/, the reference images in references/, the training images in train/ and, beside "
    f"them, public_ground_truth.csv and {SUBSET} (the 10k subset) from {LISTS}, below",
)


def disc21(root: str | Path) -> RetrievalSet:
    """Read DISC21: `queries/`, `references/` (database), optional `train/` (background), one csv of pairs.

    A `*ground*truth*.csv` with queries without reference (as for the 25,000 public development queries) lists
    all queries to use; a line is printed for others. A csv of matches alone uses all of `queries/`.
    Raises FileNotFoundError for a missing folder, csv or listed image; ValueError for two csv files, two
    images of one id, and as `read_pairs`.
    """
    root = Path(root)
    references, queries = (files_of(root / part, "disc21") for part in ("references", "queries"))
    train = files_of(root / "train", "disc21") if (root / "train").is_dir() else []
    csv_path = ground_truth_csv(root)
    pairs = read_pairs(csv_path)
    of_reference, of_query = by_stem(references, root / "references"), by_stem(queries, root / "queries")
    located(sorted(set().union(*pairs.values())), of_reference, root / "references", csv_path)
    listed = sorted(located(pairs, of_query, root / "queries", csv_path))
    if not all(pairs.values()):
        if len(listed) < len(queries):
            say_once(f"disc21: {csv_path} lists {len(listed)} of {len(queries)} queries, others are not used")
        queries = [queries[i] for i in listed]
    return assembled("disc21", root, pairs, of_reference, references=references, queries=queries, train=train)


def disc21_10k(root: str | Path) -> RetrievalSet:
    """Read the 10k subset of DISC21: 4,991 queries that have a reference, and these references alone.

    `subset_1_ground_truth.csv` lists the pairs; other images of `queries/` and `references/` are not used.
    Raises FileNotFoundError for a missing folder, csv or listed image; ValueError for a query without
    reference, two images of one id, and as `read_pairs`.
    """
    root = Path(root)
    listing = root / SUBSET
    if not listing.is_file():
        raise FileNotFoundError(f"disc21_10k: {listing} does not exist; {LISTS} has it")
    pairs = read_pairs(listing)
    alone = [query for query, found in pairs.items() if not found]
    if alone:
        raise ValueError(f"{listing}: {alone[0]} has no reference, every query of the subset has one")
    references = listed_files(root / "references", set().union(*pairs.values()), listing)
    queries = listed_files(root / "queries", pairs, listing)
    of_reference = by_stem(references, root / "references")
    return assembled("disc21_10k", root, pairs, of_reference, references=references, queries=queries)


def listed_files(folder: Path, names: Iterable[str], listing: Path) -> list[str]:
    """Return the images of those ids in a folder, by id; raises as `files_of`, `by_stem` and `located`."""
    paths = files_of(folder, "disc21_10k")
    return [paths[i] for i in located(sorted(names), by_stem(paths, folder), folder, listing)]


def assembled(
    name: str,
    root: Path,
    pairs: Mapping[str, set[str]],
    of_reference: Mapping[str, int],
    *,
    references: Sequence[str],
    queries: Sequence[str],
    train: Sequence[str] = (),
) -> RetrievalSet:
    """Return the set of these images; of_reference: index of each reference by id."""
    sizes = np.cumsum([len(references), len(queries), len(train)])
    database, query_indices, background = np.split(np.arange(sizes[-1]), sizes[:-1])
    ids = [pairs.get(Path(path).stem, ()) for path in queries]
    positives = tuple(np.array(sorted(of_reference[name] for name in found), np.int64) for found in ids)
    images = unlabelled(root, [*references, *queries, *train])
    return RetrievalSet(
        name, images, query_indices, database, positives, "micro-AP",
        background=background, recalls=(1, 10),
    )  # fmt: skip


def ground_truth_csv(root: Path) -> Path:
    """Return the one `*ground*truth*.csv` besides the subset's.

    Raises FileNotFoundError for none, ValueError for several.
    """
    found = sorted(
        path
        for path in root.glob("*ground*truth*.csv")
        if path.name != SUBSET and not path.name.startswith(".")
    )
    if not found:
        raise FileNotFoundError(f"disc21: {root} holds no *ground*truth*.csv")
    if len(found) > 1:
        raise ValueError(f"disc21: {root} holds {' and '.join(path.name for path in found)}: keep one")
    return found[0]


def read_pairs(path: Path) -> dict[str, set[str]]:
    """Read rows of query_id and reference_id as {query: set of references}, empty for queries without.

    The header is optional; other columns and repeated rows are ignored. Raises ValueError, naming the file,
    for no rows, a row without query, or too few columns.
    """
    rows = read_rows(path)
    at = columns(rows[0][1], PAIR_COLUMNS)
    query, reference = at or (0, 1)
    pairs = {}
    for number, row in rows[1:] if at else rows:
        if len(row) <= max(query, reference) or not row[query]:
            raise ValueError(
                f"{path}, line {number}: {shown(','.join(row))} should be {','.join(PAIR_COLUMNS)}"
            )
        pairs.setdefault(row[query], set()).update({row[reference]} - {""})
    if not pairs:
        raise ValueError(f"{path} lists no pairs")
    return pairs
