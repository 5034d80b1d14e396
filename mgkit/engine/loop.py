"""The loop of a training run: epochs of steps, with validation, logs and snapshots.

`Training.state_dict` is what resuming needs. `Training.log` makes a line of steps.jsonl. `RunFiles` writes.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mgkit.checkpoints import facts
from mgkit.config import TrainConfig
from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList
from mgkit.data.loader import Batch, ImageDataset, UnreadableImages, batch_loader
from mgkit.engine.launch import StoppedError
from mgkit.engine.monitor import Monitor, Pace, StepStatistics
from mgkit.engine.run import read_metrics, stage_folder
from mgkit.engine.snapshots import OpenedRun, SnapshotError, Snapshots
from mgkit.features import Passes, classify
from mgkit.losses import JointLoss
from mgkit.machine.device import pick_device, place
from mgkit.machine.distributed import (
    all_gather,
    all_reduce,
    broadcast_buffers,
    broadcast_object,
    is_initialized,
    is_main,
    raise_in_all,
    run_in_all,
    with_synchronised_batch_norm,
    world_size,
)
from mgkit.machine.files import link_or_copy
from mgkit.machine.progress import progress
from mgkit.machine.shared_memory import check_shared_memory
from mgkit.machine.timing import timed
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain
from mgkit.samplers import share
from mgkit.training import (
    Objective,
    RepeatedBatches,
    build_optimizer,
    epoch_batches,
    freeze_batch_norm,
    is_enough,
    means_of,
    not_finite_weight,
    parts_of,
    set_learning_rate,
    train_step,
)
from mgkit.transforms import train_transform

Result = TypeVar("Result")


class NonFiniteError(ArithmeticError):
    """The loss or a weight is no longer finite; the message names the step and the last good checkpoint."""


@dataclass
class Position:
    """Where a training is, as a snapshot holds it.

    step: optimizer steps done.
    epoch: the current one, 0-based.
    batch: batches of the epoch done.
    sums: statistics of the epoch's steps, summed over samples.
    line: the same since the last line of steps.jsonl.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    line: dict[str, float] = field(default_factory=dict)

    def add(self, sums: dict[str, float]) -> None:
        """Add the statistics of a step."""
        for into in (self.sums, self.line):
            for name, value in sums.items():
                into[name] = into.get(name, 0.0) + value


class Training:
    """One process's part of a training run. Every process has one, and all make the same calls.

    net: with its first weights.
    images: for training and for validation.
    content: of the snapshot to resume from, or None.
    opened: the run's folder, in the main process; None in the others and in a dry run.
    asked_to_stop: called before every step, with the number of steps done.
    """

    def __init__(
        self,
        config: TrainConfig,
        net: MultiGrain,
        images: tuple[ImageList, ImageList],
        content: dict | None,
        opened: OpenedRun | None,
        asked_to_stop: Callable[[int], bool],
    ):
        check_batch(config)
        self.config, self.asked_to_stop = config, asked_to_stop
        self.train_images, self.val_images = images
        self.device = pick_device()
        self.net = place(net, self.device)
        if config.batch_norm == "sync":
            self.net = with_synchronised_batch_norm(self.net)
        loss = JointLoss(config.lambda_, beta=config.beta, margin=config.margin).to(self.device)
        loss.margin_loss.beta.requires_grad_(config.lambda_ < 1)
        self.beta = loss.margin_loss.beta
        self.optimizer = build_optimizer(self.net, loss, config)
        self.position = Position()
        if content:
            self.load_state_dict(content)
        self.objective = in_parallel(self.net, loss, config, self.device)
        self.batches = epoch_batches(self.train_images, config)
        self.loader = training_loader(self.train_images, self.batches, self.net, config, self.device)
        self.unreadable = UnreadableImages(config.on_unreadable)
        self.pace = Pace(self.device)
        self.recent = StepStatistics()
        self.images = 0  # of all processes, since the last line of steps.jsonl
        self.files = RunFiles(opened, config, self.position)
        if opened:
            print(opening(config, self.train_images, self.batches, self.device))

    # --- What a snapshot holds

    def state_dict(self) -> dict:
        """All that resuming needs, and that using the network needs. In the main process.

        No random state: random numbers depend on the seed and the position alone.
        """
        config = self.config
        return {
            "model_state": self.net.state_dict(), **facts(self.net),
            "classes": list(self.train_images.classes), "size": config.size, "p": config.p,
            "extra": {"beta": self.beta.detach()}, "optimizer": self.optimizer.state_dict(),
            "epoch": self.position.epoch, "position": asdict(self.position), "config": asdict(config),
            "processes": world_size(), "images_hash": self.files.opened.images_hash,
        }  # fmt: skip

    def load_state_dict(self, content: dict) -> None:
        """Take weights, β, the optimizer's state and the position from a snapshot's content."""
        self.net.load_state_dict(content["model_state"])
        with torch.no_grad():
            self.beta.copy_(content["extra"]["beta"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.position = Position(**content["position"])

    def save(self) -> Path | None:
        """Write a snapshot, and return its path in the main process.

        Raises NonFiniteError for weights that are not finite, SnapshotError where it cannot be written.
        """
        self.flush()
        if wrong := not_finite_weight(self.net, self.beta):
            what = f"a weight after step {self.position.step} ({wrong})"
            raise not_finite(what, self.config, self.position, self.lr)
        return self.files.save(self.position.step, self.state_dict)

    # --- Epochs and steps

    @timed("training")
    def epoch(self, epoch: int) -> None:
        """Train on the rest of a 0-based epoch, validate, and save."""
        config, position = self.config, self.position
        position.epoch = epoch
        set_learning_rate(self.optimizer, config, epoch)
        self.batches.set_epoch(epoch, skip=position.batch)
        self.train_mode()
        for batch, counts in self.shares(self.bar(f"epoch {epoch + 1}/{config.epochs}")):
            parts = parts_of(counts, config.accumulate)
            if is_enough(parts, config.batch_norm):
                self.step(batch, parts)
                if position.step % config.log_every == 0:
                    self.log()
            position.batch += 1
        self.flush()
        if not position.sums.get("samples"):
            raise UnreadableImageError("too few readable images in this data: not one batch to train on")
        with self.pace.paused():
            self.end_epoch()

    def step(self, batch: Batch, parts: list[list[int]]) -> None:
        """Make a step, see `train_step`, and keep its statistics."""
        step = self.position.step
        sums = train_step(self.objective, self.optimizer, batch, parts, step=step, config=self.config)
        self.position.step += 1
        self.recent.add(self.position.step, sums)
        self.images += sum(map(sum, parts))

    def end_epoch(self) -> None:
        """Validate, append to metrics.jsonl, and save a snapshot, which checkpoint.pth then is."""
        self.save()  # validation may take long
        position, epochs = self.position, self.position.epoch + 1
        metrics = means_of(position.sums) | self.beta_and_lr()
        metrics |= validate(self.net, self.val_images, self.config, self.unreadable)
        self.files.log_epoch(epochs, position.step, metrics)
        self.position = Position(step=position.step, epoch=epochs, line=position.line)
        self.files.publish(self.save())

    def finish(self) -> Path:
        """Report unreadable images, write results.json, and return the path of checkpoint.pth."""
        self.unreadable.report()
        self.files.finish()
        return stage_folder(self.config) / "checkpoint.pth"

    def train_mode(self) -> None:
        """Switch to training: dropout is on, batch norm as the config says."""
        self.net.train()
        if self.config.batch_norm == "frozen":
            freeze_batch_norm(self.net)

    @property
    def lr(self) -> float:
        """The base learning rate, that of the classifier."""
        return self.optimizer.param_groups[0]["lr"]

    # --- Batches

    def bar(self, description: str) -> Iterable[Batch]:
        """The loader's batches; measures the time waited for them, and in the main process shows progress."""
        loader, skipped = self.pace.watch(self.loader), self.batches.skip
        if not self.files.opened:
            return loader
        total = skipped + len(self.batches)
        return progress(loader, description, total=total, initial=skipped, stays=True)

    def shares(self, loader: Iterable[Batch]) -> Iterator[tuple[Batch, list[int]]]:
        """Yield this process's share of every batch, and the number of samples in each process's share, [W].

        Before every batch, an error or a request to stop in one process ends all, and all save if it is time.
        """
        batches = iter(loader)
        while True:
            batch, error = None, None
            try:
                batch = next(batches, None)
                self.unreadable.note(batch.unreadable if batch else ())
            except OSError as caught:
                error = caught
            samples, ended = len(batch.label) if batch else 0, batch is None
            due = self.files.snapshot_is_due()
            told = all_gather(
                [samples, ended, error is not None, self.asked_to_stop(self.position.step), due]
            )
            counts, ended, failed, stops, saves = (list(column) for column in zip(*told, strict=True))
            if any(failed):
                raise_in_all(error)
            if any(stops):
                saved = broadcast_object(self.save())
                how = f"; saved at {saved}: run the same command again to resume" if saved else ""
                raise StoppedError(f"stopped as asked{how}")
            if any(ended):
                return
            if any(saves):
                self.save()
            yield batch, counts

    # --- What is logged

    def flush(self) -> None:
        """Add the statistics of recent steps to the position; raises NonFiniteError for a loss."""
        for step, sums in self.recent.take().items():
            if not math.isfinite(sums["loss"]):
                raise not_finite(f"the loss of step {step}", self.config, self.position, self.lr)
            self.position.add(sums)

    def log(self) -> None:
        """Append a line to steps.jsonl: mean losses, β, learning rate and speed since the last line."""
        self.flush()
        values = means_of(self.position.line) | self.beta_and_lr() | self.pace.take(self.images)
        self.files.log_step(self.position.step, values)
        self.position.line, self.images = {}, 0

    def beta_and_lr(self) -> dict[str, float]:
        """The margin loss's β, and the base learning rate."""
        return {"beta": self.beta.item(), "lr": self.lr}


class RunFiles:
    """The files that a training writes. All processes call the methods together; only the main one writes.

    All raise SnapshotError where it cannot.

    opened: the run's folder, in the main process; None in the others, and in a dry run, which writes nothing.
    position: at which the training starts.
    """

    def __init__(self, opened: OpenedRun | None, config: TrainConfig, position: Position):
        self.opened, self.config = opened, config
        self.last_save = time.monotonic()
        self.monitor = self.by_main(
            lambda: Monitor(opened.run.folder, step=position.step, epoch=position.epoch)
        )

    def by_main(self, write: Callable[[], Result]) -> Result | None:
        """Return what `write` returns in the main process, and None in the others."""

        def explained() -> Result:
            try:
                return write()
            except SnapshotError:
                raise
            except OSError as error:
                path = error.filename2 or error.filename or self.opened.run.folder
                raise self.opened.snapshots.explained(error, path) from None

        return run_in_all(explained, here=self.opened is not None)

    def save(self, step: int, state_dict: Callable[[], dict]) -> Path | None:
        """Write a snapshot, and return its path in the main process."""
        path = self.by_main(lambda: self.opened.snapshots.save(step, state_dict()))
        self.last_save = time.monotonic()
        return path

    def snapshot_is_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed since the last snapshot, by the main process's clock."""
        return is_main() and time.monotonic() - self.last_save > 60 * self.config.checkpoint_minutes

    def publish(self, snapshot: Path | None) -> None:
        """Make checkpoint.pth that snapshot."""
        self.by_main(lambda: link_or_copy(snapshot, self.opened.run.folder / "checkpoint.pth"))

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Append a line to steps.jsonl."""
        self.by_main(lambda: self.monitor.step(step, values))

    def log_epoch(self, epochs: int, step: int, metrics: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and print a summary."""
        self.by_main(lambda: self.monitor.epoch(epochs, step, metrics))
        if self.opened:
            print(summary(epochs, metrics))

    def finish(self) -> None:
        """Make checkpoint.pth the last snapshot, and write results.json."""

        def write() -> None:
            self.monitor.close()
            link_or_copy(self.opened.snapshots.files()[0], self.opened.run.folder / "checkpoint.pth")
            last = read_metrics(self.config)[-1]
            # Last, as results.json marks the run as finished.
            self.opened.run.results({
                "top1": last["val_top1"], "top5": last["val_top5"], "beta": last["beta"],
                "images_hash": self.opened.images_hash,
            })  # fmt: skip

        self.by_main(write)


def not_finite(what: str, config: TrainConfig, position: Position, lr: float) -> NonFiniteError:
    """The error for a loss or a weight: where it is, the last good checkpoint, and what to change."""
    good = Snapshots(stage_folder(config) / "snapshots").files()
    kept = f"the last good checkpoint is {good[0]}" if good else "there is no checkpoint yet"
    start = "start another experiment from it with init_from," if good else "start another experiment with"
    return NonFiniteError(
        f"{what} is not finite (epoch {position.epoch + 1}, batch {position.batch + 1}, lr {lr:g}, "
        f"precision {config.precision}); {kept}: "
        f"{start} a lower lr or precision=float32"
    )


def opening(config: TrainConfig, images: ImageList, batches: RepeatedBatches, device: torch.device) -> str:
    """What is trained on, as one line; a second one if the images are too few for more than one step."""
    line = (
        f"{config.backbone}: {len(images)} images, {len(images.classes)} classes, "
        f"{len(batches)} batches per epoch, {world_size()} x {device.type}"
    )
    samples = batches.batches.samples
    if samples >= config.batch_size:
        return line
    return (
        f"{line}\nan epoch has {samples} samples, fewer than batch_size {config.batch_size}, so one step: "
        "for more steps, raise epochs or len_factor, or lower batch_size"
    )


def in_parallel(net: MultiGrain, loss: JointLoss, config: TrainConfig, device: torch.device) -> nn.Module:
    """The objective, its gradients averaged over the processes where there are several."""
    objective = Objective(net, loss, global_sampling=config.global_sampling, precision=config.precision)
    if config.compile:
        net.features.compile()
    if not is_initialized():
        return objective
    return DistributedDataParallel(
        objective,
        device_ids=None if device.type == "cpu" else [device.index],
        gradient_as_bucket_view=True,
        # Some of timm's networks have parameters that no feature map depends on. On a CPU it keeps the layout
        # of gradients after the first step, on which the rounding of sums over three or more depends.
        find_unused_parameters=device.type == "cpu" or config.backbone.startswith("timm/"),
    )


def training_loader(
    images: ImageList, batches: RepeatedBatches, net: MultiGrain, config: TrainConfig, device: torch.device
) -> DataLoader:
    """A loader of augmented training images."""
    transform = train_transform(
        config.size, config.augmentation, crop_scale=config.crop_scale, mean=net.mean, std=net.std
    )
    return batch_loader(ImageDataset(images, transform), batches, workers=config.workers, device=device)


def check_readers(config: TrainConfig) -> None:
    """Raise RefusedError where the batches of the loading processes do not fit into shared memory."""
    samples = -(-config.batch_size // world_size())  # of the largest share
    check_shared_memory(workers=config.workers, batch=samples * 3 * config.size**2 * 4)  # float32


def check_batch(config: TrainConfig) -> None:
    """Raise ValueError where not even a whole batch gives every process and part enough samples."""
    processes = world_size()
    counts = [len(range(config.batch_size)[share(config.batch_size, k, processes)]) for k in range(processes)]
    if not is_enough(parts_of(counts, config.accumulate), config.batch_norm):
        raise ValueError(
            f"batch_size {config.batch_size} is too small for {processes} processes, each with "
            f"{config.accumulate} parts (accumulate): a part needs two samples, or one with batch_norm=sync"
        )


def check_batch_norm(config: TrainConfig, processes: int) -> None:
    """Raise ValueError for synchronised batch norm in several processes on CPUs, which torch lacks."""
    if config.batch_norm == "sync" and processes > 1 and pick_device().type == "cpu":
        raise ValueError(
            f"batch_norm sync needs a GPU for each of {processes} processes; choose local or frozen on CPUs"
        )


def validate(
    net: MultiGrain, images: ImageList, config: TrainConfig, unreadable: UnreadableImages
) -> dict[str, float]:
    """Measure val_top1, val_top5 (0..1) and val_cross_entropy on square images of the training size.

    All processes call it together, and each classifies its share.
    """
    broadcast_buffers(net)
    passes = Passes.of(config, crop="square", unreadable=unreadable, description="validation")
    logits, labels = run_in_all(lambda: classify(net, images, size=config.size, passes=passes))
    sums = torch.zeros(4, dtype=torch.float64)
    if len(labels):  # with few images some processes have none
        ranks = target_ranks(logits, labels)
        cross_entropy = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([(ranks < 1).sum(), (ranks < 5).sum(), cross_entropy, torch.tensor(len(labels))])
    top1, top5, cross_entropy, samples = all_reduce(sums).tolist()
    if not samples:
        raise unreadable.none_readable()
    return {
        "val_top1": top1 / samples,
        "val_top5": top5 / samples,
        "val_cross_entropy": cross_entropy / samples,
    }


def summary(epoch: int, metrics: dict[str, float]) -> str:
    """One epoch as one line."""
    return (
        f"epoch {epoch}: loss {metrics['loss']:.3f} (cross-entropy {metrics['cross_entropy']:.3f}, "
        f"margin {metrics['margin']:.3f}), β {metrics['beta']:.3f}, "
        f"training top-1 {100 * metrics['top1']:.1f} %, validation top-1 {100 * metrics['val_top1']:.1f} %"
    )
