"""DISC21, the Image Similarity Challenge of 2021."""

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

# --- DISC


def disc21(root: str | Path) -> RetrievalSet:
    """DISC21, the Image Similarity Challenge of 2021: `queries/`, `references/`, and one `*ground*truth*.csv` beside them.

    The database is `references/`, the background `train/` where it exists. A csv that lists queries without a reference, as that
    of the 25,000 public development queries does, lists every query of its part: those are asked, and a line tells how many
    images of `queries/` are not. Where it lists matches alone, all of `queries/` is asked. A query may have several references.
    Raises FileNotFoundError for a missing folder, csv or listed image, ValueError for two csv files, two images of one id,
    and as `read_pairs`.
    """
    root = Path(root)
    references, queries = (files_of(root / part, "disc21") for part in ("references", "queries"))
    train = files_of(root / "train", "disc21") if (root / "train").is_dir() else []
    listing = ground_truth_csv(root)
    pairs = read_pairs(listing)
    of_reference, of_query = by_stem(references, root / "references"), by_stem(queries, root / "queries")
    located(sorted(set().union(*pairs.values())), of_reference, root / "references", listing)
    listed = sorted(located(pairs, of_query, root / "queries", listing))
    if not all(pairs.values()):
        if len(listed) < len(queries):
            print(f"disc21: {listing} lists {len(listed)} of {len(queries)} queries, the others are left out")
        queries = [queries[i] for i in listed]
    database, asked, background = np.split(
        np.arange(len(references) + len(queries) + len(train)), np.cumsum([len(references), len(queries)])
    )
    answers = [sorted(of_reference[each] for each in pairs.get(Path(path).stem, ())) for path in queries]
    return RetrievalSet(
        "disc21",
        unlabelled(root, [*references, *queries, *train]),
        asked,
        database,
        tuple(np.array(each, dtype=np.int64) for each in answers),
        "micro-AP",
        background=background,
    )


def ground_truth_csv(root: Path) -> Path:
    """The one `*ground*truth*.csv` of a folder; FileNotFoundError where there is none, ValueError for several."""
    found = sorted(path for path in root.glob("*ground*truth*.csv") if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"disc21: {root} holds no *ground*truth*.csv")
    if len(found) > 1:
        raise ValueError(f"disc21: {root} holds {' and '.join(path.name for path in found)}: leave one there")
    return found[0]


PAIR_COLUMNS = ("query_id", "reference_id")


def read_pairs(path: Path) -> dict[str, set[str]]:
    """DISC's matches, rows of query_id and reference_id, as {query: its references}; a query without any has an empty set.

    The header may be missing, further columns are passed over, a repeated row counts once. Raises ValueError, naming the file,
    for one without rows, and for a row without a query or, where there is no header, without a second column.
    """
    rows = read_rows(path)
    at = columns(rows[0][1], PAIR_COLUMNS)
    query, reference = at or (0, 1)
    pairs = {}
    for number, row in rows[1:] if at else rows:
        if len(row) <= max(query, reference) or not row[query]:
            raise ValueError(f"{path}, line {number}: {','.join(row)!r} should be {','.join(PAIR_COLUMNS)}")
        pairs.setdefault(row[query], set()).update({row[reference]} - {""})
    if not pairs:
        raise ValueError(f"{path} lists no pairs")
    return pairs


DISC21 = Benchmark(
    {"queries": 50_000, "references": 1_000_000, "train": 1_000_000},
    tuple(f"{letter}{'[0-9]' * digits}.jpg" for letter, digits in (("q", 5), ("r", 6), ("t", 6))),
    companions=(Companion("*ground*truth*.csv", "which says the answers"),),
    details=partial(
        numbered,
        {
            "queries": ("Q{:05d}.jpg", 50_000),
            "references": ("R{:06d}.jpg", 1_000_000),
            "train": ("T{:06d}.jpg", 1_000_000),
        },
    ),
    by_hand="accept the terms at https://ai.meta.com/datasets/disc21-dataset/, then put the development queries in queries/, the "
    "reference images in references/, the training images in train/ and dev_queries_groundtruth.csv beside them, below",
)
