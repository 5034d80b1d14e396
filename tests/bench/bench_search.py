"""Exact search beside faiss's flat index, a compressed index beside both, and what 100 M images need at these rates.

Part of `make bench` (`rows`). By itself it writes outputs/bench/search.json. The descriptors are `mgkit.scale.made_up`: 200,000 in 2,000 clusters.
"""

import platform
from statistics import median
from time import perf_counter

import faiss
import numpy as np
import torch
from measuring import Row, compared, extra_memory, table, write_json

from mgkit import get_multigrain
from mgkit.machine.device import describe
from mgkit.retrieval.indices import compare, size
from mgkit.retrieval.indices import table as ann_table
from mgkit.retrieval.search import top_k
from mgkit.scale import made_up, plan, rates_of
from mgkit.scale import table as scale_table

COUNT, DIM, QUERIES, K = 200_000, 512, 1000, 100
FACTORIES = ["IVF1024,SQ8", "OPQ64,IVF1024,PQ64"]
CPU = torch.device("cpu")


def float64_reference(queries: np.ndarray, database: np.ndarray, k: int) -> np.ndarray:
    """The first k by float64 products [Q,k], ties by rising index."""
    found = []
    for some in np.split(queries, range(50, len(queries), 50)):
        scores = np.zeros((len(some), len(database)))
        for start in range(0, len(database), 20_000):
            rows = database[start : start + 20_000].astype(np.float64)
            scores[:, start : start + len(rows)] = some.astype(np.float64) @ rows.T
        for row in scores:
            near = np.flatnonzero(row >= np.partition(row, -k)[-k])
            found.append(near[np.argsort(-row[near], kind="stable")][:k])
    return np.array(found)


def exact_against_flat(queries: np.ndarray, database: np.ndarray, repeats: int = 7) -> Row:
    """Seconds of `top_k` and of faiss's flat index by turns; whether `top_k` is right; the memory that it takes."""
    top_k(queries[:8], database[:4096], k=K, device=CPU)  # what the libraries allocate once
    memory = extra_memory(lambda: top_k(queries, database, k=K, device=CPU))
    flat = faiss.IndexFlatIP(DIM)
    flat.add(database)
    flat.search(queries, K)
    _, found = top_k(queries, database, k=K, device=CPU)
    row = compared(
        f"search, {COUNT:,} × {DIM}, {QUERIES:,} queries, k={K}: faiss flat",
        lambda: top_k(queries, database, k=K, device=CPU), lambda: flat.search(queries, K), rounds=repeats, wanted=1.2,
    )  # fmt: skip
    right = bool((found == float64_reference(queries, database, K)).all())
    row.raw.update(equal_to_float64=right, extra_memory_bytes=memory, faiss_flat_bytes=size(flat))
    return row


def growth(queries: np.ndarray, database: np.ndarray, repeats: int) -> Row:
    """Seconds of all vectors beside those of a quarter, which should be four times as many."""
    few = database[: COUNT // 4]
    return compared(
        "search: 4 × the vectors", lambda: top_k(queries, database, k=K, device=CPU),
        lambda: top_k(queries, few, k=K, device=CPU), rounds=repeats, wanted=4.6,
    )  # fmt: skip


def rows(repeats: int = 3) -> list[Row]:
    """The exact search; the compressed index is `main`'s."""
    database, queries = made_up(COUNT, DIM, queries=QUERIES)
    return [exact_against_flat(queries, database, repeats), growth(queries, database, repeats)]


def embedding_rate(repeats: int = 3) -> float:
    """Images a second of a ResNet-50 at 224 px on this machine's CPU, forward alone."""
    net = get_multigrain("resnet50", p=3.0, num_classes=1000).eval()
    images = torch.rand(8, 3, 224, 224)
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = perf_counter()
            net(images)
            seconds.append(perf_counter() - start)
    return len(images) / median(seconds[1:])


def main() -> None:
    database, queries = made_up(COUNT, DIM, queries=QUERIES)
    exact = exact_against_flat(queries, database)
    print(f"{describe(CPU)}\n{table([exact])}")
    memory = exact.raw["extra_memory_bytes"]
    beside = "not measured" if memory is None else f"{memory / 2**20:.0f} MiB beside the data"
    print(f"memory: {beside}; faiss's flat index has {exact.raw['faiss_flat_bytes'] / 2**20:.0f} MiB")
    print(f"indices equal to float64: {exact.raw['equal_to_float64']}\n")
    indices = compare(FACTORIES, database, queries, k=10, nprobe=16, repeats=1)
    print(ann_table(indices), "\n")
    rates = rates_of(indices[-1], images_per_second=embedding_rate())
    planned = plan(rates)
    print(scale_table(rates, planned))
    result = {
        "machine": f"{platform.machine()}, {describe(CPU)}",
        "exact": exact.plain(),
        "compared": [vars(row) for row in indices],
        "rates": vars(rates),
        "plan": vars(planned),
    }
    write_json("search.json", result)


if __name__ == "__main__":
    main()
