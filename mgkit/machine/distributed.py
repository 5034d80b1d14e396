"""Several processes as one training: who am I, what do the others have, sums and gathered rows. No-ops in a process alone.

Started by `mgkit.engine.launch`, or by hand with `torchrun -m mgkit`. W processes have ranks 0 to W-1; rank r has n_r of the
batch's B samples. Collectives on the CPU go through gloo, on GPUs through NCCL.
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

Content = TypeVar("Content")
Result = TypeVar("Result")
LONGEST_WAIT = timedelta(minutes=60)  # of a process for the others: rank 0 may index millions of files first


@contextmanager
def process_group() -> Iterator[None]:
    """Be one of the processes that torch.distributed.run started, for the block; a process alone stays alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if hasattr(os, "register_at_fork"):  # it stays registered, and does nothing once this process is alone
        os.register_at_fork(before=let_collectives_end)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT
    )
    yield
    dist.destroy_process_group()  # after an error it might wait for the others, who are gone


def let_collectives_end() -> None:
    """Called before a loader's process is forked: give the threads of the last collective the time to let go of Python.

    A fork at the moment that one of them registers with the interpreter hangs the child for ever, up to Python 3.11.
    """
    if is_initialized():
        time.sleep(0.02)


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Which process this is, 0 to W-1."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """How many processes there are, W."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Every process waits here for the others."""
    if is_initialized():
        dist.barrier()


def all_gather(numbers: Sequence[int]) -> list[list[int]]:
    """A few integers of each process, known to all: W lists, by rank."""
    mine = torch.tensor(numbers, dtype=torch.int64)  # on the CPU: no GPU has to finish its work for it
    if not is_initialized():
        return [mine.tolist()]
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    return [of_rank.tolist() for of_rank in everyone]


def all_gather_object(content: Content) -> list[Content]:
    """Something plain of each process, known to all, by rank."""
    if not is_initialized():
        return [content]
    found = [None] * world_size()
    dist.all_gather_object(found, content)
    return found


def broadcast_object(content: Content | None) -> Content:
    """What the main process has; the others pass None."""
    if not is_initialized():
        return content
    carrier = [content]
    dist.broadcast_object_list(carrier, src=0)
    return carrier[0]


def together(work: Callable[[], Result], *, here: bool = True) -> Result | None:
    """What `work` returns where it is done, None where not `here`. An OSError or ValueError in any process is raised by all.

    So nobody waits for one who has failed, and every launcher, of many nodes too, hears the reason.
    """
    found, error = None, None
    try:
        found = work() if here else None
    except (OSError, ValueError) as caught:
        error = caught
    raise_in_all(error)
    return found


def raise_in_all(error: Exception | None) -> None:
    """Raise a process's own error, or else the first that another has; nothing where all have None."""
    raised = [other for other in all_gather_object(error) if other is not None]
    if raised:
        raise error or raised[0]


def main_first(work: Callable[[], Result]) -> Result:
    """What `work` returns, in the main process before the others, which find the files that it leaves; errors as `together`."""
    first = together(work, here=is_main())
    rest = together(work, here=not is_main())
    return first if is_main() else rest


def all_reduce(x: Tensor) -> Tensor:
    """The sum over all processes, without gradient, same shape."""
    if not is_initialized():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


class GatherRows(torch.autograd.Function):
    """Rows [n_r,...] of every process, in rank order -> [B,...]; see `all_gather_rows`."""

    @staticmethod
    def forward(ctx, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])  # [max n,...]
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([of_rank[:count] for of_rank, count in zip(everyone, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        first = sum(ctx.counts[: rank()])
        return all_reduce(gradient)[first : first + ctx.counts[rank()]], None


def all_gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes in rank order, [n_r,...] -> [B,...]; counts: n_r of each rank, B = their sum.

    Gradients flow back to the process that a row came from, all_reduce over the W processes that used it.
    """
    return GatherRows.apply(rows, counts) if is_initialized() else rows


@torch.no_grad()
def broadcast_buffers(net: nn.Module) -> None:
    """Give every process the main one's buffers: batch norm's running statistics, which each has its own of."""
    if is_initialized():
        for buffer in net.buffers():
            dist.broadcast(buffer, src=0)


def with_synchronised_batch_norm(net: nn.Module) -> nn.Module:
    """The network with torch's SyncBatchNorm, whose statistics are those of all processes (GPUs only).

    The names of its parameters stay. Raises ValueError for batch norms that hold an activation, as some of timm's.
    """
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) is not nn.BatchNorm2d:
            raise ValueError(
                f"batch_norm sync: this backbone has {type(module).__name__}, which cannot be synchronised; "
                "choose local or frozen"
            )
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)
