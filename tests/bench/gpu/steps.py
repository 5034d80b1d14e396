"""The training step beside a bare one; compiled, in a process group of one, with SyncBatchNorm."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torchvision
from bench_step import CLASSES, WANTED, bare_step, made_up_batch, our_step, repeated, settings
from gpu.lines import Line
from gpu.setting import Setting, halving, line_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import _functions
from torch.utils.flop_counter import FlopCounterMode

from mgkit.machine.distributed import backend_of


@cache
def flops_an_image(backbone: str, size: int, *, training: bool) -> float:
    """Floating-point operations of torchvision's network for an image, forward, and backward in training."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = torchvision.models.get_model(backbone, num_classes=CLASSES)
        scores = net(torch.zeros(2, 3, size, size))
        if training:
            F.cross_entropy(scores, torch.zeros(2, dtype=torch.int64)).backward()
    return counter.get_total_flops() / 2


def options_of(setting: Setting, batch: int, *, compiled: bool = False) -> argparse.Namespace:
    sizes = setting.sizes
    given = {"backbone": sizes.backbone, "size": sizes.size, "batch": batch, "steps": sizes.steps}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return settings([*words, *(["--compile"] if compiled else [])])


def step_line(
    name: str, setting: Setting, batch: int, ours: Callable, floor: Callable, *, wanted: float = WANTED
) -> Line:
    """Images a second of two steps in alternating rounds, and how far ours is from the matrix rate."""
    sizes = setting.sizes
    ours, floor = (repeated(step, sizes.steps, setting.device) for step in (ours, floor))
    images = sizes.steps * batch
    flops = images * flops_an_image(sizes.backbone, sizes.size, training=True)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # as in `run_training`
        return line_of(
            setting, name, ours, floor, wanted=wanted, flops=flops, limit=sizes.precision, work=images
        )


def named(setting: Setting, what: str) -> str:
    sizes = setting.sizes
    return f"training step, {sizes.backbone} {sizes.size} px, {sizes.precision}{what}"


def against_bare(setting: Setting, batch: int, *, compiled: bool) -> Line:
    options = options_of(setting, batch, compiled=compiled)
    images = made_up_batch(options.size, batch, setting.device)
    ours, bare = (make(options, setting.sizes.precision, images) for make in (our_step, bare_step))
    what = f", batch {setting.sizes.batch}{', torch.compile' if compiled else ''}: bare step"
    return step_line(named(setting, what), setting, batch, ours, bare)


def step_lines(setting: Setting) -> list[Line]:
    line = halving(setting.sizes.batch, lambda batch: against_bare(setting, batch, compiled=False))
    line.known["step"] = line.row.measured
    return [line]


def compiled_lines(setting: Setting) -> list[Line]:
    return [halving(setting.sizes.batch, lambda batch: against_bare(setting, batch, compiled=True))]


# --- In a process group


@contextmanager
def alone_in_a_group(device: torch.device) -> Iterator[None]:
    """A process group of this process alone, with the backends of a training in several."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            backend_of(device), init_method=(Path(folder) / "store").as_uri(), rank=0, world_size=1,
            timeout=timedelta(minutes=1),
        )  # fmt: skip
        try:
            yield
        finally:
            dist.destroy_process_group()


def in_parallel(setting: Setting, batch: int) -> Line:
    """DistributedDataParallel with one process, beside the step without it."""
    options, images = options_of(setting, batch), made_up_batch(setting.sizes.size, batch, setting.device)
    plain = our_step(options, setting.sizes.precision, images)
    with alone_in_a_group(setting.device):
        parallel = our_step(options, setting.sizes.precision, images)
        name = named(setting, f", DDP by {dist.get_backend_config()}, one process: without")
        return step_line(name, setting, batch, parallel, plain)


def parallel_lines(setting: Setting) -> list[Line]:
    return [halving(setting.sizes.batch, lambda batch: in_parallel(setting, batch))]


def synchronised_forward(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """SyncBatchNorm's forward among several processes: in a process alone torch takes plain batch norm."""
    norm.num_batches_tracked.add_(1)
    return _functions.SyncBatchNorm.apply(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps, norm.momentum,
        dist.group.WORLD, dist.get_world_size(),
    )  # fmt: skip


def synchronised(setting: Setting, batch: int) -> Line:
    """SyncBatchNorm's own kernels and collectives, beside plain batch norm, both with DDP of one process.

    On a CPU torch has none of them: there both are plain, without a process group.
    """
    device, on_cpu = setting.device, setting.device.type == "cpu"
    options, images = options_of(setting, batch), made_up_batch(setting.sizes.size, batch, device)
    with (
        nullcontext() if on_cpu else alone_in_a_group(device),
        nullcontext() if on_cpu else patch.object(nn.SyncBatchNorm, "forward", synchronised_forward),
    ):
        ours, plain = (
            our_step(options, setting.sizes.precision, images, batch_norm=kind) for kind in ("sync", "local")
        )
        name = named(setting, ", SyncBatchNorm, one process: without")
        return step_line(name, setting, batch, ours, plain, wanted=0.8)


def synchronised_lines(setting: Setting) -> list[Line]:
    return [halving(setting.sizes.batch, lambda batch: synchronised(setting, batch))]
