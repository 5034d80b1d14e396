"""The machine's own limits, measured: matrix rates, bandwidths, and how fast all cores decode."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from bench_loader import rate
from gpu.inputs import picture_list
from gpu.lines import Line
from gpu.setting import Setting
from PIL import Image
from torch import Tensor

from mgkit.data.loader import ImageDataset, SeededBatches, batch_loader, end_workers
from mgkit.machine.device import GPUS, synchronize

ROUNDS = 5
SECONDS = 0.1  # of a round
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def rates(call: Callable[[], object], work: float, device: torch.device) -> list[float]:
    """Work a second of a call, in every round of many calls."""

    def seconds(calls: int) -> float:
        synchronize(device)
        start = perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        return perf_counter() - start

    seconds(3)  # warm-up
    calls = max(1, int(SECONDS / seconds(1)))
    return [work * calls / seconds(calls) for _ in range(ROUNDS)]


def line_of(name: str, found: list[float], scale: float, unit: str, *, known: str) -> Line:
    """The best of the rounds is the limit."""
    low, high = min(found) / scale, max(found) / scale
    return Line(
        f"limit: {name}", text=f"{high:.4g} {unit}", spread=f"{low:.4g} to {high:.4g}",
        known={known: max(found)},
    )  # fmt: skip


def matrix_line(setting: Setting, name: str) -> Line:
    """FLOP/s of a large square product; in float32 without TF32, as in `top_k`."""
    device, dtype = setting.device, DTYPES[name]
    n = setting.sizes.matrix // 2 if dtype == torch.float64 else setting.sizes.matrix
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    found = rates(lambda: a @ b, 2 * n**3, device)
    return line_of(f"matrix rate, {name}, {n:,} × {n:,}", found, 1e12, "TFLOP/s", known=name)


def bandwidth_lines(setting: Setting) -> list[Line]:
    """Bytes read and written a second by a copy on the device, and bytes copied to it from the host."""
    device, size = setting.device, setting.sizes.copied
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = rates(lambda: target.copy_(source), 2 * size, device)
    lines = [line_of("bandwidth of a copy", found, 1e9, "GB/s", known="bandwidth")]
    if device.type in GPUS:
        lines += [host_line(size // 4, target, pinned) for pinned in (True, False)]
    return lines


def host_line(size: int, target: Tensor, pinned: bool) -> Line:
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
    found = rates(lambda: target[:size].copy_(host, non_blocking=pinned), size, target.device)
    name = "pinned" if pinned else "pageable"
    return line_of(f"from {name} host memory", found, 1e9, "GB/s", known=f"from {name}")


def decode_line(setting: Setting) -> Line:
    """JPEG files decoded a second, by as many processes as cores."""
    pictures, workers = picture_list(setting.pictures), setting.sizes.workers
    order = list(range(len(pictures))) * workers
    batches = [order[k : k + 16] for k in range(0, len(order), 16)]
    loader = batch_loader(ImageDataset(pictures, nothing_of), SeededBatches(batches), workers=workers)
    rate(loader)  # starts the processes, and has the files in memory
    found = [rate(loader) for _ in range(ROUNDS)]
    end_workers(loader)
    with Image.open(Path(pictures.paths[0])) as one:
        size = "{} × {}".format(*one.size)
    return line_of(f"decoding, JPEG {size}, processes: {workers}", found, 1, "images/s", known="decoding")


def nothing_of(image: Image.Image) -> Tensor:
    return torch.zeros(1)


def lines(setting: Setting) -> list[Line]:
    with torch.no_grad():
        matrices = [matrix_line(setting, name) for name in DTYPES]
        return [*matrices, *bandwidth_lines(setting), decode_line(setting)]
