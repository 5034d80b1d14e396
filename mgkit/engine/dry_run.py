"""A dry run: some steps of a training are measured, and tell what the whole would cost. Nothing is written."""

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
from mgkit.machine.device import describe
from mgkit.machine.distributed import all_gather, all_gather_object, world_size
from mgkit.training import is_enough, parts_of

SECONDS = 10.0  # of each measurement
FEWEST = 2  # steps measured, however long they take
BUSY = 0.1  # share of the time from which on waiting for images matters
BYTES_A_LINE = 1000  # of steps.jsonl and TensorBoard's file together, generously


@dataclass(frozen=True)
class Estimate:
    """What was measured, by all processes together, and what follows for the whole training.

    Rates in images a second: of the training, of its steps and of its reading each by itself, of validation. data_wait: the
    share of the time that the training waits for images, 0..1. Bytes: memory of a process with its readers, of all on this
    machine `memory_there`; gpu_memory and gpu_memory_there, 0 without a GPU; snapshot, of one checkpoint.
    """

    config: TrainConfig
    device: str
    processes: int
    steps: int  # measured
    training_rate: float
    step_rate: float
    reading_rate: float
    validation_rate: float
    data_wait: float
    memory: int
    memory_there: int
    gpu_memory: int
    gpu_memory_there: int
    snapshot: int
    steps_an_epoch: int
    images_an_epoch: int
    val_images: int

    @property
    def training_seconds(self) -> float:
        return self.config.epochs * self.images_an_epoch / self.training_rate

    @property
    def validation_seconds(self) -> float:
        return self.config.epochs * self.val_images / self.validation_rate

    @property
    def disk(self) -> int:
        """Bytes at most: the snapshots that are kept, the one being written, checkpoint.pth, lines and curves."""
        lines = self.config.epochs * self.steps_an_epoch // self.config.log_every
        return (self.config.keep_checkpoints + 2) * self.snapshot + lines * BYTES_A_LINE


def rehearse(training: Training) -> Estimate:
    """Measure a training that has not begun: some steps, the steps without reading, reading without steps, validation.

    To be called by all processes; takes about a minute, or a few steps where those take long.
    """
    config, device = training.config, training.device
    training.train_mode()
    batches = endless(training)
    batch, counts = next(batches)
    step(training, batch, counts)  # the first one compiles, tunes and allocates
    training.pace.take(0)
    steps, seconds = timed(training, lambda: step(training, *next(batches)))
    data_wait = training.pace.take(1)["data_wait"]
    steps_alone, seconds_alone = timed(training, lambda: step(training, batch, counts))
    batches.close()
    memory = process_memory()
    reading_rate = sum(all_gather_object(read(training)))
    many = min(len(training.val_images), 4 * config.batch_size * world_size())
    began = time.perf_counter()
    validate(training.net, training.val_images.subset(range(many)), config, training.unreadable)
    validation_rate = many / (time.perf_counter() - began)
    on_gpu = device.type == "cuda"
    images = sum(counts)
    return Estimate(
        config=config, device=describe(device), processes=world_size(), steps=steps,
        training_rate=steps * images / seconds, step_rate=steps_alone * images / seconds_alone,
        reading_rate=reading_rate, validation_rate=validation_rate, data_wait=max(all_gather_object(data_wait)),
        memory=max(all_gather_object(memory)), memory_there=psutil.virtual_memory().total,
        gpu_memory=max(all_gather_object(torch.cuda.max_memory_reserved(device) if on_gpu else 0)),
        gpu_memory_there=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
        snapshot=snapshot_size(training), steps_an_epoch=len(training.batches),
        images_an_epoch=training.batches.batches.samples, val_images=len(training.val_images),
    )  # fmt: skip


def endless(training: Training) -> Iterator[tuple[Batch, list[int]]]:
    """Whole batches of the training, epoch after epoch, as (this process's share, the samples of each process)."""
    whole = min(training.config.batch_size, training.batches.batches.samples)
    for epoch in count():
        training.batches.set_epoch(epoch)
        found = False
        for batch, counts in training.shares(training.pace.watch(training.loader)):
            if sum(counts) == whole and is_enough(
                parts_of(counts, training.config.accumulate), training.config.batch_norm
            ):
                found = True
                yield batch, counts
        if not found:
            raise UnreadableImageError("no whole batch in an epoch: every one has an unreadable image in it")


def step(training: Training, batch: Batch, counts: list[int]) -> None:
    """A step of the training, its losses forgotten."""
    training.step(batch, parts_of(counts, training.config.accumulate))
    training.recent.of_step.clear()


def timed(training: Training, make_step: Callable[[], None]) -> tuple[int, float]:
    """(steps, seconds) of all processes making steps, until the main one's clock says that it is enough."""
    synchronize(training.device)
    began = time.perf_counter()
    for steps in count(1):
        make_step()
        synchronize(training.device)
        seconds = time.perf_counter() - began
        [enough, *_], *_ = all_gather([seconds > SECONDS and steps >= FEWEST])
        if enough:
            return steps, seconds


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read(training: Training) -> float:
    """Images a second of this process's readers, nothing else being done; every one of them has had a batch to read."""
    training.batches.set_epoch(0)
    began, images = time.perf_counter(), 0
    for batches, batch in enumerate(training.loader, start=1):
        images += len(batch.label)
        seconds = time.perf_counter() - began
        if seconds > SECONDS / 2 and batches > training.config.workers:
            break
    return images / (time.perf_counter() - began)


def process_memory() -> int:
    """Bytes that this process and its children hold, what they share counted once."""
    this = psutil.Process()
    memory = [process.memory_full_info() for process in (this, *this.children(recursive=True))]
    return sum(each.pss if psutil.LINUX else each.uss for each in memory)


def snapshot_size(training: Training) -> int:
    """Bytes of a checkpoint on disk."""
    file = io.BytesIO()
    torch.save({"model_state": training.net.state_dict(), "optimizer": training.optimizer.state_dict()}, file)
    return file.tell()


def report(estimate: Estimate) -> str:
    """The estimate as aligned text."""
    e, config = estimate, estimate.config
    gpu = f"; {gib(e.gpu_memory)} of {gib(e.gpu_memory_there)} GiB of a GPU" if e.gpu_memory_there else ""
    images = config.epochs * e.images_an_epoch
    return "\n".join([
        f"dry run: {config.backbone}, {config.size} px, batches of {config.batch_size}, {e.processes} x {e.device}, "
        f"{config.workers} readers each; {e.steps} steps measured, nothing written",
        f"  training        {e.training_rate:10.1f} images/s",
        f"  steps alone     {e.step_rate:10.1f} images/s",
        f"  reading alone   {e.reading_rate:10.1f} images/s",
        f"  validation      {e.validation_rate:10.1f} images/s",
        f"  waiting         {bottleneck(e)}",
        f"  memory          {gib(e.memory)} GiB a process with its readers, the machine has {gib(e.memory_there)}{gpu}",
        f"  whole training  {config.epochs} epochs, {config.epochs * e.steps_an_epoch:,} steps, {images:,} images: "
        f"{duration(e.training_seconds)}, and {duration(e.validation_seconds)} of validation",
        f"  disk            {e.disk / 2**20:,.0f} MiB: snapshots of {e.snapshot / 2**20:,.1f} MiB, and what is noted",
    ])  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds in hours, and where those are few, in minutes or seconds; days beside many hours."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    days = f" ({seconds / 86400:.1f} days)" if seconds > 48 * 3600 else ""
    return f"{seconds / 3600:,.1f} h{days}"


def bottleneck(estimate: Estimate) -> str:
    """Which of network and reading waits for the other, and what would help."""
    waits = f"the network waits {100 * estimate.data_wait:.0f} % of the time for images: "
    if estimate.data_wait > BUSY:
        return waits + "more workers, more cores or smaller image files help, a faster network does not"
    return waits + "the network sets the pace; more or faster devices help, more workers do not"
