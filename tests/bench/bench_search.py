"""Exact search beside faiss's flat index, a compressed index beside both, and what 100 M images need at these rates.

Run by `make bench`; writes outputs/bench/search.json. The descriptors are `mgkit.scale.made_up`: 200,000 in 2,000 clusters.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import faiss
import numpy as np
import torch

from mgkit import get_multigrain
from mgkit.ann import compare, size, table
from mgkit.files import atomic_write, project_root
from mgkit.hardware import describe
from mgkit.scale import made_up, plan, rates_of
from mgkit.scale import table as scale_table
from mgkit.search import top_k

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


def extra_memory(call: Callable) -> int | None:
    """Bytes by which the process grows at most during a call; None where the system does not say (it is Linux that does)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def read(field: str) -> int:
        return sum(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))  # fmt: skip

    reset.write_text("5")  # the peak is counted from here
    before = read("VmRSS")
    call()
    return read("VmHWM") - before


def exact_against_flat(queries: np.ndarray, database: np.ndarray, repeats: int = 7) -> dict:
    """Seconds of `top_k` and of faiss's flat index by turns; whether `top_k` is right; the memory that it takes."""
    top_k(queries[:8], database[:4096], k=K, device=CPU)  # what the libraries allocate once
    memory = extra_memory(lambda: top_k(queries, database, k=K, device=CPU))
    flat = faiss.IndexFlatIP(DIM)
    flat.add(database)
    flat.search(queries, K)
    _, found = top_k(queries, database, k=K, device=CPU)
    own, theirs = [], []
    for _ in range(repeats):
        for times, call in [
            (own, lambda: top_k(queries, database, k=K, device=CPU)),
            (theirs, lambda: flat.search(queries, K)),
        ]:
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
    return {
        "top_k_seconds": own,
        "faiss_flat_seconds": theirs,
        "ratio": median(a / b for a, b in zip(own, theirs, strict=True)),
        "equal_to_float64": bool((found == float64_reference(queries, database, K)).all()),
        "extra_memory_bytes": memory,
        "faiss_flat_bytes": size(flat),
    }


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
    print(f"{COUNT:,} vectors of {DIM}, {QUERIES:,} queries, k = {K}; {describe(CPU)}")
    memory = exact["extra_memory_bytes"]
    beside = "memory not measured" if memory is None else f"{memory / 2**20:.0f} MiB beside the data"
    print(f"top_k           {median(exact['top_k_seconds']):6.2f} s, {beside}")
    print(
        f"faiss flat      {median(exact['faiss_flat_seconds']):6.2f} s, {exact['faiss_flat_bytes'] / 2**20:.0f} MiB of index"
    )
    print(
        f"ratio           {exact['ratio']:6.2f} (median of {len(exact['top_k_seconds'])} by turns; at most 1.2 is wanted)"
    )
    print(f"indices equal to float64: {exact['equal_to_float64']}\n")
    rows = compare(FACTORIES, database, queries, k=10, nprobe=16, repeats=1)
    print(table(rows), "\n")
    rates = rates_of(rows[-1], images_per_second=embedding_rate())
    planned = plan(rates)
    print(scale_table(rates, planned))
    result = {
        "machine": f"{platform.machine()}, {describe(CPU)}",
        "exact": exact,
        "compared": [vars(row) for row in rows],
        "rates": vars(rates),
        "plan": vars(planned),
    }
    with atomic_write(project_root() / "outputs" / "bench" / "search.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
