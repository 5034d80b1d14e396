"""Collectives of torch.distributed; without a process group they return their input.

Processes are started by `mgkit.engine.launch`, or by hand with `torchrun -m mgkit`. W is the world size;
rank r has n_r of the batch's B samples. The backend is gloo for tensors on the CPU, NCCL on CUDA's GPUs,
xccl on Intel's.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgkit.machine.device import GPUS, pick_device

Content = TypeVar("Content")
Result = TypeVar("Result")
TIMEOUT = timedelta(minutes=60)  # of a collective: rank 0 may first index millions of files


@contextmanager
def process_group() -> Iterator[None]:
    """Initialise the process group of torchrun's environment for the block; none where WORLD_SIZE is 1.

    Raises ValueError for several processes on a GPU without a backend.
    """
    workers = int(os.environ.get("WORLD_SIZE", 1))
    if workers == 1:
        yield
        return
    if hasattr(os, "register_at_fork"):  # stays registered, without effect once the group is destroyed
        os.register_at_fork(before=wait_before_fork)
    device = pick_device()
    backend = backend_of(device)
    if backend is None:
        raise ValueError(f"torch has no collectives for {device.type}: run one process, not {workers}")
    if device.type in GPUS:
        GPUS[device.type].set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: it could wait for processes that have ended


def backend_of(device: torch.device) -> str | None:
    """The backend for tensors on the CPU and on the device; None if torch has none, as for MPS."""
    if device.type == "xpu" and not dist.is_backend_available("xccl"):
        return None
    return {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}.get(device.type)


def gpu_count() -> int:
    """The number of this machine's GPUs that can work together, one a process; 0 without GPUs."""
    if cuda := torch.cuda.device_count():
        return cuda
    device = pick_device()
    if device.type == "cpu":
        return 0
    return torch.xpu.device_count() if backend_of(device) else 1


def wait_before_fork() -> None:
    """Let the threads of the last collective finish before a loader worker is forked.

    A fork while such a thread registers with the interpreter deadlocks the child (Python up to 3.11).
    """
    if is_initialized():
        time.sleep(0.02)


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process, 0 to W-1."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of processes, W."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if is_initialized():
        dist.barrier()


def all_gather(numbers: Sequence[int]) -> list[list[int]]:
    """Gather a list of integers from every process: W lists, by rank."""
    mine = torch.tensor(numbers, dtype=torch.int64)  # on the CPU: needs no synchronisation with a GPU
    if not is_initialized():
        return [mine.tolist()]
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    return [part.tolist() for part in parts]


def all_gather_object(content: Content) -> list[Content]:
    """Gather a picklable object from every process: W objects, by rank."""
    if not is_initialized():
        return [content]
    found = [None] * world_size()
    dist.all_gather_object(found, content)
    return found


def broadcast_object(content: Content | None) -> Content:
    """Rank 0's object, in every process; the other ranks pass None."""
    if not is_initialized():
        return content
    carrier = [content]
    dist.broadcast_object_list(carrier, src=0)
    return carrier[0]


def from_main(work: Callable[[], Result]) -> Result:
    """What `work` returns in rank 0, in every process; an OSError or ValueError is raised in all."""
    return broadcast_object(run_in_all(work, here=is_main()))


def run_in_all(work: Callable[[], Result], *, here: bool = True) -> Result | None:
    """Call `work` in every process where `here` is true; an OSError or ValueError of one is raised in all.

    So no process waits in a collective for one that has failed. Returns None where `here` is false.
    """
    result, error = None, None
    try:
        result = work() if here else None
    except (OSError, ValueError) as caught:
        error = caught
    raise_in_all(error)
    return result


def raise_in_all(error: Exception | None) -> None:
    """Raise this process's error, else that of the lowest rank with one; return if no process has any."""
    raised = [other for other in all_gather_object(error) if other is not None]
    if raised:
        raise error or raised[0]


def main_first(work: Callable[[], Result]) -> Result:
    """Call `work` on rank 0, then on the others, which may use files it wrote; errors as in `run_in_all`."""
    first = run_in_all(work, here=is_main())
    rest = run_in_all(work, here=not is_main())
    return first if is_main() else rest


def all_reduce(x: Tensor) -> Tensor:
    """Sum over all processes, without gradient, same shape."""
    if not is_initialized():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


class GatherRows(torch.autograd.Function):
    """Rows [n_r,...] -> [B,...]; see `all_gather_rows`."""

    @staticmethod
    def forward(ctx, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])  # [max n,...]
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        first = sum(ctx.counts[: rank()])
        return all_reduce(gradient)[first : first + ctx.counts[rank()]], None


def all_gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Gather the rows of all processes in rank order, [n_r,...] -> [B,...], with gradient.

    counts: n_r of each rank; B is their sum.

    A row's gradient is the sum over the W processes that used it, in the process that the row came from.
    """
    return GatherRows.apply(rows, counts) if is_initialized() else rows


@torch.no_grad()
def broadcast_buffers(net: nn.Module) -> None:
    """Broadcast rank 0's buffers, such as the running statistics of batch norm."""
    if is_initialized():
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)


def with_synchronised_batch_norm(net: nn.Module) -> nn.Module:
    """The network with SyncBatchNorm for BatchNorm2d (GPUs only); parameter names do not change.

    Raises ValueError for subclasses of batch norm, such as timm's with an activation.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) is not nn.BatchNorm2d:
            raise ValueError(
                f"batch_norm=sync: this backbone has {type(module).__name__}, which cannot be synchronised; "
                "choose local or frozen"
            )
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)
