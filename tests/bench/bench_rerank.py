"""Query expansion and re-ranking beside the search they need, with their memory, on made-up descriptors.

αQE needs the neighbours of the queries; database augmentation, k-reciprocal encoding and diffusion those of
all rows. Part of `make bench` with 10,000 rows for these (`rows`); by itself with 100,000, in an hour or two.
"""

from collections.abc import Callable

import numpy as np
import torch
from bench_search import made_up
from measuring import Row, compared, extra_memory, table

from mgkit.machine.device import describe
from mgkit.retrieval.neighbours import Blocks
from mgkit.retrieval.rerank import (
    alpha_query_expansion,
    database_augmentation,
    diffusion_blocks,
    k_reciprocal_blocks,
)
from mgkit.retrieval.search import top_k

ALL, SOME, DIM, QUERIES = 100_000, 10_000, 512, 1000
CPU = torch.device("cpu")
K, ALPHA = 10, 3.0
TIMES, MEBIBYTES = 3.0, 512  # wanted, also of 100,000 rows: times the search, and memory beside the data


def through(blocks: Blocks) -> None:
    for _ in blocks:
        pass


def rows(count: int = SOME, rounds: int = 5) -> list[Row]:
    """Ratios to the search, and memory; αQE always on all rows."""
    database, queries = made_up(ALL, DIM, queries=QUERIES)
    few = database[:count]
    calls = [
        ("αQE", database, lambda x: alpha_query_expansion(queries, x, K, ALPHA), queries, K),
        ("DBA", few, lambda x: database_augmentation(x, K, ALPHA), few, K + 1),
        ("k-reciprocal", few, lambda x: through(k_reciprocal_blocks(queries, x)), few, 21),
        ("diffusion", few, lambda x: through(diffusion_blocks(queries, x)), few, 51),
    ]
    return [row for call in calls for row in both(*call, rounds)]


def both(
    name: str, database: np.ndarray, call: Callable, searched: np.ndarray, k: int, rounds: int
) -> list[Row]:
    """Rows of time and of memory of a call on a database; its floor: `top_k` of the rows searched."""
    grown = extra_memory(lambda: call(database))  # first, before the heap has room from other calls
    search = compared(
        f"{name}, {len(database):,} × {DIM}: the search it needs", lambda: call(database),
        lambda: top_k(searched, database, k=k, device=CPU), rounds=rounds, wanted=TIMES,
    )  # fmt: skip
    if grown is None:
        return [search]
    mebibytes = grown / 2**20
    memory = Row(
        f"{name}, {len(database):,} × {DIM}: memory beside the data", mebibytes, database.nbytes / 2**20,
        "MiB", mebibytes, MEBIBYTES, True, of="MiB",
    )  # fmt: skip
    return [search, memory]


def main() -> None:
    print(f"{describe(CPU)}\n{table(rows(ALL))}")


if __name__ == "__main__":
    main()
