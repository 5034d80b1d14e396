"""A dry run: measure some steps of a training, and estimate what all of it costs. It writes nothing."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import psutil
import torch

from mgkit.config import TrainConfig
from mgkit.data.decoding import UnreadableImageError
from mgkit.data.loader import Batch
from mgkit.engine.loop import Training, validate
from mgkit.engine.provenance import gib
from mgkit.machine.device import describe, reserved_memory, synchronize
from mgkit.machine.distributed import all_gather, all_gather_object, world_size
from mgkit.training import is_enough, parts_of

SECONDS = 10.0  # of each measurement
MIN_STEPS = 2  # that are measured, however long they take
NOTABLE_WAIT = 0.1  # share of the time spent waiting for images, from which faster loading pays
BYTES_PER_LINE = 1000  # upper bound for a line of steps.jsonl and its points in TensorBoard's file


@dataclass(frozen=True)
class Estimate:
    """What a dry run measured, over all processes, and what follows for the whole training.

    steps: number of steps measured.
    training_rate, validation_rate: images per second.
    step_rate, loading_rate: the same for the steps without loading, and for loading without steps.
    data_wait: share of the training time spent waiting for images (0..1).
    memory: of a process with its workers, at most; memory_there: of the machine (bytes).
    gpu_memory, gpu_memory_there: the same for a GPU, 0 without one (bytes).
    snapshot: size of a snapshot (bytes).
    """

    config: TrainConfig
    device: str
    processes: int
    steps: int
    training_rate: float
    step_rate: float
    loading_rate: float
    validation_rate: float
    data_wait: float
    memory: int
    memory_there: int
    gpu_memory: int
    gpu_memory_there: int
    snapshot: int
    steps_per_epoch: int
    images_per_epoch: int
    val_images: int

    @property
    def training_seconds(self) -> float:
        return self.config.epochs * self.images_per_epoch / self.training_rate

    @property
    def validation_seconds(self) -> float:
        return self.config.epochs * self.val_images / self.validation_rate

    @property
    def disk(self) -> int:
        """Upper bound in bytes: the snapshots kept, the one being written, checkpoint.pth, and the logs."""
        lines = self.config.epochs * self.steps_per_epoch // self.config.log_every
        return (self.config.keep_checkpoints + 2) * self.snapshot + lines * BYTES_PER_LINE


def measure(training: Training) -> Estimate:
    """Measure a training that has not begun: training, steps alone, loading alone, validation.

    All processes call it together. It takes about a minute, longer if a few steps do.
    """
    config, device = training.config, training.device
    training.train_mode()
    batches = whole_batches(training)
    batch, counts = next(batches)
    step(training, batch, counts)  # the first one compiles, tunes and allocates
    training.pace.take(0)
    steps, seconds = timed(training, lambda: step(training, *next(batches)))
    data_wait = training.pace.take(1)["data_wait"]
    steps_alone, seconds_alone = timed(training, lambda: step(training, batch, counts))
    batches.close()
    memory = process_memory()
    loading_rate = sum(all_gather_object(images_loaded_per_second(training)))
    many = min(len(training.val_images), 4 * config.batch_size * world_size())
    began = time.perf_counter()
    validate(training.net, training.val_images.subset(range(many)), config, training.unreadable)
    validation_rate = many / (time.perf_counter() - began)
    gpu_memory, gpu_memory_there = reserved_memory(device)
    images = sum(counts)
    return Estimate(
        config=config, device=describe(device), processes=world_size(), steps=steps,
        training_rate=steps * images / seconds, step_rate=steps_alone * images / seconds_alone,
        loading_rate=loading_rate, validation_rate=validation_rate,
        data_wait=max(all_gather_object(data_wait)),
        memory=max(all_gather_object(memory)), memory_there=psutil.virtual_memory().total,
        gpu_memory=max(all_gather_object(gpu_memory)), gpu_memory_there=gpu_memory_there,
        snapshot=snapshot_size(training), steps_per_epoch=len(training.batches),
        images_per_epoch=training.batches.batches.samples, val_images=len(training.val_images),
    )  # fmt: skip


def whole_batches(training: Training) -> Iterator[tuple[Batch, list[int]]]:
    """Yield full batches without end: this process's share, and the samples in each process's share, [W]."""
    whole = min(training.config.batch_size, training.batches.batches.samples)
    for epoch in count():
        training.batches.set_epoch(epoch)
        found = False
        for batch, counts in training.shares(training.pace.watch(training.loader)):
            parts = parts_of(counts, training.config.accumulate)
            if sum(counts) == whole and is_enough(parts, training.config.batch_norm):
                found = True
                yield batch, counts
        if not found:
            raise UnreadableImageError("every batch of an epoch has an unreadable image in it")


def step(training: Training, batch: Batch, counts: list[int]) -> None:
    """Make a step of the training, and forget its statistics."""
    training.step(batch, parts_of(counts, training.config.accumulate))
    training.recent.of_step.clear()


def timed(training: Training, make_step: Callable[[], None]) -> tuple[int, float]:
    """Make steps for SECONDS of the main process's clock, in all processes: (steps, seconds)."""
    synchronize(training.device)
    began = time.perf_counter()
    for steps in count(1):
        make_step()
        synchronize(training.device)
        seconds = time.perf_counter() - began
        [enough, *_], *_ = all_gather([seconds > SECONDS and steps >= MIN_STEPS])
        if enough:
            return steps, seconds


def images_loaded_per_second(training: Training) -> float:
    """The rate of this process's loader alone, once each of its workers has had a batch."""
    training.batches.set_epoch(0)
    began, images = time.perf_counter(), 0
    for batches, batch in enumerate(training.loader, start=1):
        images += len(batch.label)
        seconds = time.perf_counter() - began
        if seconds > SECONDS / 2 and batches > training.config.workers:
            break
    return images / (time.perf_counter() - began)


def process_memory() -> int:
    """Bytes that this process and its children hold; on Linux, shared memory counts once."""
    this = psutil.Process()
    memory = [process.memory_full_info() for process in (this, *this.children(recursive=True))]
    return sum(each.pss if psutil.LINUX else each.uss for each in memory)


def snapshot_size(training: Training) -> int:
    """Bytes of a snapshot on disk."""
    file = io.BytesIO()
    torch.save({"model_state": training.net.state_dict(), "optimizer": training.optimizer.state_dict()}, file)
    return file.tell()


def report(estimate: Estimate) -> str:
    """Format the estimate as aligned text."""
    e, config = estimate, estimate.config
    gpu = f"; {gib(e.gpu_memory)} of {gib(e.gpu_memory_there)} GiB of a GPU" if e.gpu_memory_there else ""
    steps, images = config.epochs * e.steps_per_epoch, config.epochs * e.images_per_epoch
    return "\n".join([
        f"dry run: {config.backbone}, {config.size} px, batches of {config.batch_size}, "
        f"{e.processes} x {e.device}, {config.workers} workers each; "
        f"{e.steps} steps measured, nothing written",
        f"  training        {e.training_rate:10.1f} images/s",
        f"  steps alone     {e.step_rate:10.1f} images/s",
        f"  loading alone   {e.loading_rate:10.1f} images/s",
        f"  validation      {e.validation_rate:10.1f} images/s",
        f"  waiting         {bottleneck(e)}",
        f"  memory          {gib(e.memory)} GiB per process with its workers, "
        f"of the machine's {gib(e.memory_there)}{gpu}",
        f"  whole training  {config.epochs} epochs, {steps:,} steps, {images:,} images: "
        f"{duration(e.training_seconds)}, and {duration(e.validation_seconds)} of validation",
        f"  disk            {e.disk / 2**20:,.0f} MiB: snapshots of {e.snapshot / 2**20:,.1f} MiB, and logs",
    ])  # fmt: skip


def duration(seconds: float) -> str:
    """Format seconds as s, min or h, and days from 48 hours on."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    days = f" ({seconds / 86400:.1f} days)" if seconds > 48 * 3600 else ""
    return f"{seconds / 3600:,.1f} h{days}"


def bottleneck(estimate: Estimate) -> str:
    """Whether loading or the network limits the speed, and what would help."""
    waits = f"the network waits {100 * estimate.data_wait:.0f} % of the time for images: "
    if estimate.data_wait > NOTABLE_WAIT:
        return waits + "more workers, more cores or smaller image files help, a faster GPU does not"
    return waits + "the network limits the speed; more or faster devices help, more workers do not"
