"""Exact search beside faiss on the CPU, and the fit of the whitening beside its eigenvectors."""

from dataclasses import replace

import faiss
import numpy as np
import psutil
import torch
from gpu.lines import Line
from gpu.setting import Setting, line_of
from measuring import seconds
from torch.nn import functional as F

from mgkit.machine.device import synchronize
from mgkit.retrieval.search import slices, top_k
from mgkit.whitening import fit_pca_whitening, moments

K = 100
CENTRES, SPREAD = 2000, 0.6
BLOCK = 2**16  # rows that are made at once
AT_ONCE = 1024  # queries that `top_k` searches together
CHECKED = 8  # queries whose neighbours must be those that the CPU finds


def unit_rows(count: int, dim: int, device: torch.device, *, seed: int) -> np.ndarray:
    """Stand-ins for descriptors: clusters of L2-normalised rows [count,dim], made on the device."""
    centres = torch.randn(CENTRES, dim, device=device, generator=torch.Generator(device).manual_seed(0))
    random = torch.Generator(device).manual_seed(seed)
    rows = np.empty((count, dim), np.float32)
    for part in slices(count, BLOCK):
        size = part.stop - part.start
        noise = torch.randn(size, dim, device=device, generator=random)
        of = torch.randint(CENTRES, (size,), device=device, generator=random)
        rows[part] = F.normalize(centres[of] + SPREAD * noise).cpu().numpy()
    return rows


def vectors_that_fit(wanted: int, dim: int) -> int:
    """The number of vectors, halved until they take less than half of the free memory."""
    count = wanted
    while 4 * count * dim > psutil.virtual_memory().available // 2:
        count //= 2
    return count


def search_lines(setting: Setting) -> list[Line]:
    """Queries a second of `top_k` on the device, and of faiss's search on the CPU for a share of them."""
    sizes, device = setting.sizes, setting.device
    count = vectors_that_fit(sizes.vectors, sizes.dim)
    database = unit_rows(count, sizes.dim, device, seed=1)
    queries = unit_rows(sizes.queries, sizes.dim, device, seed=2)
    few = queries[: sizes.faiss_queries]
    check_neighbours(queries[:CHECKED], database, device)
    first = queries[:AT_ONCE]
    taken = seconds(lambda: top_k(first, database, k=K, device=device))
    queries = queries[: AT_ONCE * max(1, int(setting.seconds / 6 / taken))]
    remark = f"{len(queries):,} queries, {len(few)} by faiss; {CHECKED} are checked"
    if count < sizes.vectors:
        remark += f"; {sizes.vectors:,} vectors do not fit into the host's memory"
    setting = replace(setting, seconds=setting.seconds / 2)  # the rest is spent
    line = line_of(
        setting, f"top_k, {count:,} × {sizes.dim:,}, k={K}: faiss on the CPU",
        lambda: top_k(queries, database, k=K, device=device),
        lambda: faiss.knn(few, database, K, faiss.METRIC_INNER_PRODUCT), wanted=1.0,
        flops=2 * len(queries) * count * sizes.dim, limit="float32", remark=remark, work=len(queries),
        floor_work=len(few), unit="queries/s",
    )  # fmt: skip
    return [line]


def check_neighbours(queries: np.ndarray, database: np.ndarray, device: torch.device) -> None:
    """Raise ValueError unless the device finds what the CPU finds."""
    ours = top_k(queries, database, k=K, device=device)
    theirs = top_k(queries, database, k=K, device=torch.device("cpu"))
    if not all((a == b).all() for a, b in zip(ours, theirs, strict=True)):
        raise ValueError("top_k on the device finds other neighbours than on the CPU")


def whitening_lines(setting: Setting) -> list[Line]:
    """Seconds of the fit on the device, and of the eigenvectors of its covariance alone."""
    sizes, device = setting.sizes, setting.device
    random = torch.Generator(device).manual_seed(0)
    x = torch.randn(sizes.whitened, sizes.dim, device=device, generator=random)
    x *= torch.logspace(0, -1.5, sizes.dim, device=device)  # variances over three orders of magnitude
    _, covariance = moments(x)

    def fit() -> None:
        fit_pca_whitening(x)
        synchronize(device)

    def eigenvectors() -> None:
        torch.linalg.eigh(covariance)
        synchronize(device)

    line = line_of(
        setting, f"whitening fit, {sizes.whitened:,} × {sizes.dim:,}: eigenvectors alone", fit, eigenvectors,
        wanted=1.3, flops=2 * sizes.whitened * sizes.dim**2, limit="float64",
        remark="of the limit: the covariance only",
    )  # fmt: skip
    return [line]
