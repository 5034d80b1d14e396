"""The epochs and steps of a training run, with validation, logs and snapshots."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgkit.config import TrainConfig
from mgkit.data.decoding import UnreadableImageError
from mgkit.data.images import ImageList
from mgkit.data.loader import Batch, ImageDataset, UnreadableImages, batch_loader
from mgkit.engine.launch import StoppedError
from mgkit.engine.monitor import Monitor, Pace
from mgkit.engine.run import read_metrics, stage_folder
from mgkit.engine.snapshots import STAGE, OpenedRun, SnapshotError, Snapshots
from mgkit.features import classify
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
    rank,
    run_in_all,
    with_synchronised_batch_norm,
    world_size,
)
from mgkit.machine.files import link_or_copy
from mgkit.machine.progress import progress
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain
from mgkit.samplers import share
from mgkit.training import (
    Objective,
    Sums,
    build_optimizer,
    epoch_batches,
    freeze_batch_norm,
    means_of,
    seed_of,
    set_learning_rate,
)
from mgkit.transforms import train_transform

Result = TypeVar("Result")


class NonFiniteError(ArithmeticError):
    """The loss or the weights are no longer numbers; the message names the step and the last good checkpoint."""


@dataclass
class Position:
    """Where a training is: steps so far, the 0-based epoch, its batches so far, and sums over samples of what steps gave.

    sums: of the epoch. line: since the last line of steps.jsonl.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    line: dict[str, float] = field(default_factory=dict)


class Training:
    """Network, loss, optimizer, data and position of a run; every process has one, and all do the same.

    net: with its first weights. content: of the snapshot to go on from, or None. opened: the run's folder, in the main process only.
    """

    def __init__(
        self,
        config: TrainConfig,
        net: MultiGrain,
        images: tuple[ImageList, ImageList],
        content: dict | None,
        opened: OpenedRun | None,
        asked_to_stop: Callable[[], bool],
    ):
        check_batch(config)
        self.config, self.opened, self.asked_to_stop = config, opened, asked_to_stop
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
            self.go_on_from(content)
        self.objective = self.in_parallel(
            Objective(self.net, loss, global_sampling=config.global_sampling, precision=config.precision)
        )
        self.batches = epoch_batches(self.train_images, config)
        transform = train_transform(
            config.size, config.augmentation, crop_scale=config.crop_scale, mean=self.net.mean, std=self.net.std
        )  # fmt: skip
        dataset = ImageDataset(self.train_images, transform)
        self.loader = batch_loader(dataset, self.batches, workers=config.workers, device=self.device)
        self.unreadable = UnreadableImages(config.on_unreadable)
        self.pace = Pace(self.device)
        self.recent = Sums()
        self.images = 0  # of all processes, since the last line of steps.jsonl
        self.last_save = time.monotonic()
        self.monitor = self.by_main(
            lambda: Monitor(opened.run.folder, step=self.position.step, epoch=self.position.epoch)
        )
        if opened:
            print(
                f"{config.backbone}: {len(self.train_images)} images, {len(self.train_images.classes)} classes, "
                f"{len(self.batches)} batches an epoch, {world_size()} x {self.device.type}"
            )

    def in_parallel(self, objective: Objective) -> nn.Module:
        """The objective as it is called: compiled if that is wanted, its gradients averaged over the processes."""
        if self.config.compile:
            self.net.features.compile()
        if not is_initialized():
            return objective
        return DistributedDataParallel(
            objective,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # On a CPU gradients would else be laid out anew after the first step, and sums of three or more depend on where one
            # starts. Some networks of timm have parameters that no feature map depends on.
            find_unused_parameters=self.device.type == "cpu" or self.config.backbone.startswith("timm/"),
        )

    # --- An epoch

    def epoch(self, epoch: int) -> None:
        """Train on the rest of an epoch, then `conclude` it."""
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
            raise UnreadableImageError(
                "an epoch without a single batch to train on: too few readable images in this data"
            )
        with self.pace.paused():
            self.conclude()

    def conclude(self) -> None:
        """Validate after an epoch, leave its metrics and a snapshot."""
        self.save()  # a validation may take long
        position, epochs = self.position, self.position.epoch + 1
        metrics = means_of(position.sums) | {
            "beta": self.beta.item(),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        metrics |= validate(self.net, self.val_images, self.config, self.unreadable)
        self.by_main(lambda: self.monitor.epoch(epochs, position.step, metrics))
        if self.opened:
            print(summary(epochs, metrics))
        self.position = Position(step=position.step, epoch=epochs, line=position.line)
        saved = self.save()
        self.by_main(lambda: link_or_copy(saved, self.opened.run.folder / "checkpoint.pth"))

    def train_mode(self) -> None:
        """Dropout on, batch norm as the config says."""
        self.net.train()
        if self.config.batch_norm == "frozen":
            freeze_batch_norm(self.net)

    def bar(self, description: str):
        """The loader, its waiting measured, with a bar in the main process."""
        total = self.batches.skip + len(self.batches)
        loader = self.pace.watch(self.loader)
        return (
            progress(loader, description, total=total, initial=self.batches.skip, stays=True)
            if self.monitor
            else loader
        )

    def shares(self, loader) -> Iterator[tuple[Batch, list[int]]]:
        """This process's share of every batch, and how many samples each process has of it.

        What stops one process stops all: an unreadable image is raised by all, a wish to stop is followed by all.
        """
        batches = iter(loader)
        while True:
            batch, error = None, None
            try:
                batch = next(batches, None)
                self.unreadable.note(batch.unreadable if batch else ())
            except OSError as caught:
                error = caught
            samples = len(batch.label) if batch else 0
            told = all_gather(
                [samples, batch is None, error is not None, self.asked_to_stop(), self.wants_to_save()]
            )
            counts, ended, failed, stops, saves = (list(column) for column in zip(*told, strict=True))
            if any(failed):
                raise_in_all(error)
            if any(stops):
                saved = broadcast_object(self.save())
                how = f"; saved at {saved}: run the same command again to go on" if saved else ""
                raise StoppedError(f"stopped as asked{how}")
            if any(ended):
                return
            if any(saves):
                self.save()
            yield batch, counts

    def wants_to_save(self) -> bool:
        """Whether it is time for a snapshot, by the main process's clock."""
        return is_main() and time.monotonic() - self.last_save > 60 * self.config.checkpoint_minutes

    # --- A step

    def step(self, batch: Batch, parts: list[list[int]]) -> None:
        """One step of SGD on the batch, in as many parts as gradients are accumulated over; see `parts_of`."""
        config, step = self.config, self.position.step
        total = sum(map(sum, parts))
        torch.manual_seed(seed_of(config.seed, step, rank()))  # of dropout
        watched = bool(config.gradient_share_every) and step % config.gradient_share_every == 0
        place = 0
        self.optimizer.zero_grad()
        for k, counts in enumerate(parts):
            last = k == len(parts) - 1
            piece = slice(place, place + counts[rank()])
            place = piece.stop
            # Negatives of a joint batch are the same ones on every process, and else each one's own.
            drawn_in = k if config.global_sampling else rank() * len(parts) + k
            with nullcontext() if last or not is_initialized() else self.objective.no_sync():
                found = self.objective(
                    *self.on_device(batch, piece), counts=counts, total=total, watched=watched,
                    generator=torch.Generator(self.device).manual_seed(seed_of(config.seed, step, drawn_in)),
                )  # fmt: skip
                found["objective"].backward()
            self.recent.add(step + 1, found, counts[rank()])
        self.optimizer.step()
        self.position.step += 1
        self.images += total

    def on_device(self, batch: Batch, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
        """images [b,3,H,W], label [b], instance [b] of a piece of the batch."""
        images = batch.image[piece].to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return images, *(x[piece].to(self.device, non_blocking=True) for x in (batch.label, batch.instance))

    # --- What is left on disk

    def flush(self) -> None:
        """Add what the latest steps gave to the sums of the epoch and of the line to come. Raises NonFiniteError."""
        for step, sums in self.recent.take().items():
            if not math.isfinite(sums["loss"]):
                raise NonFiniteError(self.explain_non_finite(f"the loss of step {step}"))
            for into in (self.position.sums, self.position.line):
                for name, value in sums.items():
                    into[name] = into.get(name, 0.0) + value

    def log(self) -> None:
        """A line of steps.jsonl."""
        self.flush()
        values = means_of(self.position.line) | {
            "beta": self.beta.item(),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        values |= self.pace.take(self.images)
        self.by_main(lambda: self.monitor.step(self.position.step, values))
        self.position.line, self.images = {}, 0

    def explain_non_finite(self, what: str) -> str:
        """The message for losses or weights that are no numbers: where, what there is to go back to, what to change."""
        config, position = self.config, self.position
        folder = stage_folder(config.experiment, STAGE) / "snapshots"
        good = Snapshots(folder).files()
        kept = f"the last good checkpoint is {good[0]}" if good else "there is no checkpoint yet"
        return (
            f"{what} is not finite (epoch {position.epoch + 1}, batch {position.batch + 1}, "
            f"lr {self.optimizer.param_groups[0]['lr']:g}, "
            f"precision {config.precision}); {kept}: start another experiment from it with init_from, a lower lr or "
            "precision=float32"
        )

    def save(self) -> Path | None:
        """Write a snapshot of this moment; its path, in the main process. What fails there is raised by all."""
        self.flush()
        if not all(torch.isfinite(weight).all() for weight in self.objective.parameters()):
            raise NonFiniteError(self.explain_non_finite(f"a weight after step {self.position.step}"))
        path = self.by_main(lambda: self.opened.snapshots.save(self.position.step, self.content()))
        self.last_save = time.monotonic()
        return path

    def by_main(self, write: Callable[[], Result]) -> Result | None:
        """What `write` returns in the main process, None in the others. Raises SnapshotError in all where it cannot."""

        def explained() -> Result:
            try:
                return write()
            except SnapshotError:
                raise
            except OSError as error:
                path = error.filename2 or error.filename or self.opened.run.folder
                raise self.opened.snapshots.explained(error, path) from None

        return run_in_all(explained, here=self.opened is not None)

    def content(self) -> dict:
        """All that a training needs to go on, and a network to be used."""
        config = self.config
        return {
            "model_state": self.net.state_dict(), "backbone": self.net.name, "classes": list(self.train_images.classes),
            "size": config.size, "p": config.p, "extra": {"beta": self.beta.detach()},
            "optimizer": self.optimizer.state_dict(), "epoch": self.position.epoch, "position": asdict(self.position),
            "config": asdict(config), "processes": world_size(), "images_hash": self.opened.images_hash,
        }  # fmt: skip

    def go_on_from(self, content: dict) -> None:
        """Take weights, β, the optimizer's state and the position from a snapshot's content."""
        self.net.load_state_dict(content["model_state"])
        with torch.no_grad():
            self.beta.copy_(content["extra"]["beta"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.position = Position(**content["position"])

    def finish(self) -> Path:
        """Report, write results.json and checkpoint.pth, whose path is returned."""
        checkpoint = stage_folder(self.config.experiment, STAGE) / "checkpoint.pth"
        self.unreadable.report()
        self.by_main(lambda: self.leave(checkpoint))
        return checkpoint

    def leave(self, checkpoint: Path) -> None:
        """The checkpoint and the results of a training that has ended; results come last, for they tell that it has."""
        self.monitor.close()
        link_or_copy(self.opened.snapshots.files()[0], checkpoint)
        last = read_metrics(self.config.experiment, STAGE)[-1]
        self.opened.run.results(
            {"top1": last["val_top1"], "top5": last["val_top5"], "beta": last["beta"], "images_hash": self.opened.images_hash}
        )  # fmt: skip


def parts_of(counts: list[int], accumulate: int) -> list[list[int]]:
    """The samples of every process -> those in each of the parts over which gradients are accumulated, [parts][W].

    Each process's share is cut into contiguous pieces: `accumulate` parts on one process are as many processes.
    """
    return [[len(range(n)[share(n, k, accumulate)]) for n in counts] for k in range(accumulate)]


def check_batch(config: TrainConfig) -> None:
    """Raise ValueError where not even a whole batch gives every process and part enough samples."""
    processes = world_size()
    counts = [len(range(config.batch_size)[share(config.batch_size, k, processes)]) for k in range(processes)]
    if not is_enough(parts_of(counts, config.accumulate), config.batch_norm):
        raise ValueError(
            f"batch_size {config.batch_size} for {processes} processes, each in {config.accumulate} parts (accumulate), "
            "leaves too few samples in a part: two at least, or one with batch_norm=sync"
        )


def check_batch_norm(config: TrainConfig, processes: int) -> None:
    """Raise ValueError for synchronised batch norm in several processes on CPUs, which torch does not have."""
    if config.batch_norm == "sync" and processes > 1 and pick_device().type == "cpu":
        raise ValueError(
            f"batch_norm: sync needs a GPU for each of the {processes} processes; choose local or frozen on CPUs"
        )


def is_enough(parts: list[list[int]], batch_norm: str) -> bool:
    """Whether a step can be made: no piece is empty, and none that takes batch statistics of its own has one sample."""
    smallest = min(map(min, parts))
    return smallest >= 2 or (smallest == 1 and batch_norm != "local" and sum(map(sum, parts)) > 1)


def validate(
    net: MultiGrain, images: ImageList, config: TrainConfig, unreadable: UnreadableImages
) -> dict[str, float]:
    """val_top1, val_top5 in 0..1 and val_cross_entropy, at the training resolution, square; by all processes together."""
    broadcast_buffers(net)
    logits, labels = run_in_all(lambda: classify(
        net, images, size=config.size, crop="square", batch_size=config.batch_size, workers=config.workers,
        precision=config.precision, unreadable=unreadable, description="validation",
    ))  # fmt: skip
    sums = torch.zeros(4, dtype=torch.float64)
    if len(labels):  # of few images some processes have none
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
    """One epoch in one line of a log."""
    return (
        f"epoch {epoch}: loss {metrics['loss']:.3f} (cross-entropy {metrics['cross_entropy']:.3f}, "
        f"margin {metrics['margin']:.3f}), β {metrics['beta']:.3f}, training top-1 {100 * metrics['top1']:.1f} %, "
        f"validation top-1 {100 * metrics['val_top1']:.1f} %"
    )
