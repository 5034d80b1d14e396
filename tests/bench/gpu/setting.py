"""What a row of `make gpu` is given: the device, sizes, its share of the time, what is known by then."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from gpu.lines import Line
from measuring import compared

from mgkit.features import Passes
from mgkit.machine.device import GPUS
from mgkit.machine.files import RefusedError
from mgkit.machine.shared_memory import check_shared_memory


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    backbone, size, batch, precision: of the training step; all but the batch also of the passes.
    steps: of a round.
    rounds: at most.
    pictures, side: JPEG files, and their longest side (px).
    rect: size of the rect evaluation (px).
    images, at_once: of a pass, and of a batch of it, at most.
    larger: how many times as many images a batch has in the row of larger batches.
    vectors, dim, queries: of the search; `faiss_queries` of them are searched by faiss.
    whitened: rows of the PCA, of `dim` columns.
    matrix: rows and columns of the products that measure the matrix rate.
    copied: bytes of the copy that measures the bandwidth.
    workers: processes that load images.
    """

    backbone: str
    size: int
    batch: int
    precision: str
    steps: int
    rounds: int
    pictures: int
    side: int
    rect: int
    images: int
    at_once: int
    larger: int
    vectors: int
    dim: int
    queries: int
    faiss_queries: int
    whitened: int
    matrix: int
    copied: int
    workers: int


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FULL = Sizes(
    backbone="resnet50", size=224, batch=512, precision="bf16", steps=4, rounds=7, pictures=256, side=500,
    rect=500, images=50_000, at_once=Passes().batch_size, larger=16, vectors=1_000_000, dim=2048,
    queries=10_000, faiss_queries=128, whitened=20_000, matrix=8192, copied=2**30, workers=CORES,
)  # fmt: skip
TINY = Sizes(
    backbone="resnet18", size=32, batch=4, precision="float32", steps=1, rounds=2, pictures=12, side=60,
    rect=48, images=8, at_once=4, larger=2, vectors=2000, dim=64, queries=100, faiss_queries=20, whitened=500,
    matrix=64, copied=2**20, workers=1,
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """device: that is measured.

    seconds: the row's share of the time.
    pictures: folder of JPEG files.
    known: what earlier rows have measured, by name, such as the card's limits.
    """

    device: torch.device
    sizes: Sizes
    seconds: float
    pictures: Path
    known: dict[str, float]

    def loaders(self, batch: int) -> int:
        """The number of loading processes: one for every core, fewer where shared memory is small.

        batch: its size (bytes).
        """
        workers = self.sizes.workers
        while workers:
            try:
                check_shared_memory(workers=workers, batch=batch)
                break
            except RefusedError:
                workers //= 2
        return workers

    def of_limit(self, amount: float, seconds: float, limit: str) -> float | None:
        """The share of a limit at which so much work was done; None if the limit was not measured."""
        return amount / seconds / self.known[limit] if limit in self.known else None


class Peak:
    """The peak of the device's memory during calls, in GiB; None on a CPU."""

    def __init__(self, device: torch.device):
        self.device, self.gib = device, None

    def of(self, call: Callable[[], object]) -> Callable[[], None]:
        """The call, watched; it must wait for the device before it returns."""
        gpu = GPUS.get(self.device.type)

        def watched() -> None:
            if gpu:
                gpu.reset_peak_memory_stats(self.device)
            call()
            if gpu:
                self.gib = max(self.gib or 0.0, gpu.max_memory_allocated(self.device) / 2**30)

        return watched


def line_of(
    setting: Setting, name: str, ours: Callable, floor: Callable, *, wanted: float, flops: float, limit: str,
    remark: str = "", **work,
) -> Line:  # fmt: skip
    """Compare both in the row's time; `work` and `wanted` as for `measuring.compared`.

    flops: floating-point operations of a call of ours, which are held against the matrix rate.
    limit: the precision of that rate.
    """
    peak, most = Peak(setting.device), {"rounds": setting.sizes.rounds, "longest": setting.seconds}
    row = compared(name, peak.of(ours), floor, wanted=wanted, **most, **work)
    share = setting.of_limit(flops, median(row.raw["seconds"]), limit)
    return Line(name, row, limit=f"matrix rate, {limit}", share=share, memory=peak.gib, remark=remark)


def halving(batch: int, work: Callable[[int], Line], *, least: int = 2) -> Line:
    """What `work` returns for the batch, or for the first half, quarter, … of it that fits into memory."""
    tried = batch
    while True:
        try:
            line = work(tried)
        except torch.cuda.OutOfMemoryError:
            if tried // 2 < least:
                raise
        else:
            less = f"batch {tried}: {2 * tried} does not fit into memory"
            return (
                line if tried == batch else replace(line, remark="; ".join(filter(None, [less, line.remark])))
            )
        tried //= 2  # not within `except`: the traceback holds tensors
        free()


def free() -> None:
    """Give the memory that nothing uses back to the device."""
    gc.collect()
    torch.cuda.empty_cache()
