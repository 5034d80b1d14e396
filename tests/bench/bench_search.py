"""Exact search beside faiss's flat index, and compressed indices beside both, on 200,000 made-up descriptors.

Part of `make bench` (`rows`). By itself it writes outputs/bench/search.json.
"""

import platform

import faiss
import numpy as np
import torch
from measuring import Row, compared, extra_memory, table, write_json

from mgkit.machine.device import describe
from mgkit.retrieval.indices import compare, size
from mgkit.retrieval.indices import table as ann_table
from mgkit.retrieval.search import top_k

COUNT, DIM, QUERIES, K = 200_000, 512, 1000, 100
FACTORIES = ["IVF1024,SQ8", "OPQ64,IVF1024,PQ64"]
CPU = torch.device("cpu")


def made_up(
    count: int, dim: int, *, queries: int, clusters: int = 2000, spread: float = 0.6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Stand-ins for descriptors, L2-normalised: database [count,dim] and queries [queries,dim], float32.

    Clusters whose centres and rows have variances that fall as 1/i over the principal directions, roughly
    as the spectra of embeddings do (compression needs that), rows with `spread` times the centres'; rotated
    so that no direction is a coordinate.
    """
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    turned = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
    centres = random.standard_normal((clusters, dim), dtype=np.float32) * spectrum

    def drawn(n: int) -> np.ndarray:
        rows = random.standard_normal((n, dim), dtype=np.float32) * (spread * spectrum)
        rows += centres[random.integers(0, clusters, n)]
        return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True) @ turned)

    return drawn(count), drawn(queries)


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


def exact_against_flat(queries: np.ndarray, database: np.ndarray, repeats: int = 25) -> Row:
    """Time `top_k` and faiss's flat index in turn; check `top_k`'s result and measure its memory."""
    top_k(queries[:8], database[:4096], k=K, device=CPU)  # what the libraries allocate once
    memory = extra_memory(lambda: top_k(queries, database, k=K, device=CPU))
    flat = faiss.IndexFlatIP(DIM)
    flat.add(database)
    flat.search(queries, K)
    _, found = top_k(queries, database, k=K, device=CPU)
    row = compared(
        f"search, {COUNT:,} × {DIM}, {QUERIES:,} queries, k={K}: faiss flat",
        lambda: top_k(queries, database, k=K, device=CPU), lambda: flat.search(queries, K), rounds=repeats,
        wanted=1.05,
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


def rows(repeats: int = 5) -> list[Row]:
    """The exact search, in more rounds, for few percent are asked; the compressed index is `main`'s."""
    database, queries = made_up(COUNT, DIM, queries=QUERIES)
    return [exact_against_flat(queries, database, 5 * repeats), growth(queries, database, repeats)]


def main() -> None:
    database, queries = made_up(COUNT, DIM, queries=QUERIES)
    exact = exact_against_flat(queries, database)
    print(f"{describe(CPU)}\n{table([exact])}")
    memory = exact.raw["extra_memory_bytes"]
    beside = "not measured" if memory is None else f"{memory / 2**20:.0f} MiB beside the data"
    print(f"memory: {beside}; faiss's flat index has {exact.raw['faiss_flat_bytes'] / 2**20:.0f} MiB")
    print(f"indices equal to float64: {exact.raw['equal_to_float64']}\n")
    indices = compare(FACTORIES, database, queries, k=10, nprobe=16, repeats=1)
    print(ann_table(indices))
    result = {
        "machine": f"{platform.machine()}, {describe(CPU)}",
        "exact": exact.plain(),
        "compared": [vars(row) for row in indices],
    }
    write_json("search.json", result)


if __name__ == "__main__":
    main()
