"""Joint training: classes by cross-entropy, instances by the margin loss on repeated augmentations (section 3).

`train` starts worker processes (`mgkit.launch`); each of them, or a process alone, calls `run_training`. Every random
number is drawn from the seed and where in the training it is drawn, so the position in a snapshot is all that is needed to
go on, and a run is a function of its config and the number of processes.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgkit.checkpoints import load_network
from mgkit.config import NetworkConfig, TrainConfig, make, same_run
from mgkit.datasets import (
    Batch,
    ImageDataset,
    ImageList,
    SeededBatches,
    UnreadableImageError,
    UnreadableImages,
    batch_loader,
    labelled_images,
)
from mgkit.distributed import (
    copy_buffers_of_main,
    everyones,
    exchange,
    gathered_rows,
    is_joined,
    is_main,
    of_main,
    rank,
    summed,
    wait_for_all,
    with_synchronised_batch_norm,
    world_size,
)
from mgkit.embed import classify
from mgkit.experiment import (
    NOTEBOOKS,
    Run,
    data_root,
    images_hash,
    is_mini,
    missing_stage,
    read_config,
    read_metrics,
    read_results,
    stage_folder,
)
from mgkit.files import exclusive, find_path, link_or_copy
from mgkit.hardware import autocast, pick_device, place
from mgkit.launch import StoppedError, launch
from mgkit.losses import JointLoss, gradient_share
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain, get_multigrain
from mgkit.monitor import Monitor, Pace
from mgkit.progress import progress
from mgkit.samplers import RepeatedAugmentationSampler, share
from mgkit.snapshots import SnapshotError, Snapshots
from mgkit.transforms import train_transform

STAGE = "train"
LONGEST_STOP = 120  # seconds that a run waits for an earlier one to leave its folder


class NonFiniteError(ArithmeticError):
    """The loss or the weights are no longer numbers; the message names the step and the last good checkpoint."""


def train(config: TrainConfig) -> Path:
    """Run a whole training in worker processes; returns the checkpoint it leaves, outputs/<experiment>/train/checkpoint.pth.

    An unfinished training of the same config goes on at its last snapshot, a finished one is left as it is, unless
    `resume` is off. Raises what is wrong with config or data at once, and `mgkit.launch.WorkerError` for what fails later.
    """
    checkpoint = stage_folder(config.experiment, STAGE) / "checkpoint.pth"
    images = training_data(config)
    if is_finished(config, images):
        print(
            f"{checkpoint} is that of a finished training with these parameters: nothing to do (resume=False trains anew)"
        )
        return checkpoint
    launch(STAGE, config)
    return checkpoint


def is_finished(config: TrainConfig, images: tuple[ImageList, ImageList]) -> bool:
    """Whether the experiment's training has been run to its end with this config on these images."""
    results = read_results(config.experiment, STAGE)
    if not config.resume or results is None or results.get("images_hash") != images_hash(*images):
        return False
    return same_run(read_config(config.experiment, STAGE), asdict(config))


def training_data(config: TrainConfig) -> tuple[ImageList, ImageList]:
    """The (training, validation) images of `config.data`; other processes wait while the main one finds them."""
    if not is_main():
        wait_for_all()
    train_images, val_images = labelled_images(data_root(config.data), val_fraction=config.val_fraction)
    if is_main():
        wait_for_all()
    return train_images.with_exif(config.exif), val_images.with_exif(config.exif)


def run_training(config: TrainConfig, *, asked_to_stop: Callable[[], bool] = lambda: False) -> Path:
    """The training itself, in this process, or in each of those that are joined; returns the checkpoint.

    After every epoch: a line of metrics.jsonl and of the log, and a snapshot, which checkpoint.pth then is. Snapshots are also
    written every `checkpoint_minutes`. asked_to_stop: looked at before every step; where any process is asked to, all save
    and raise StoppedError. Raises NonFiniteError, SnapshotError, UnreadableImageError, ValueError.
    """
    images = training_data(config)
    with ExitStack() as stack:
        opened = open_run(config, images, stack) if is_main() else None
        content = of_main(opened.content if opened else None)
        training = Training(config, images, content, opened, asked_to_stop)
        for epoch in range(training.position.epoch, config.epochs):
            training.epoch(epoch)
        return training.finish()


# --- Where a run starts


@dataclass
class OpenedRun:
    """The main process's hold of a run's folder. content: of the snapshot to go on from, None for a fresh run."""

    run: Run
    snapshots: Snapshots
    content: dict | None
    images_hash: str


def open_run(config: TrainConfig, images: tuple[ImageList, ImageList], stack: ExitStack) -> OpenedRun:
    """Hold the run's folder, for as long as the stack, and find what there is to go on from.

    Raises ValueError for a snapshot of other parameters or other images, TimeoutError where another process trains there.
    """
    folder = stage_folder(config.experiment, STAGE)
    hold(folder, stack)
    found = images_hash(*images)
    snapshots = Snapshots(folder / "snapshots", keep=config.keep_checkpoints)
    written = read_config(config.experiment, STAGE)
    unfinished = bool(snapshots.files()) and read_results(config.experiment, STAGE) is None
    goes_on = config.resume and unfinished and written is not None and same_run(written, asdict(config))
    newest = snapshots.newest() if goes_on else None
    if newest is not None:
        check_snapshot(*newest, config, found)
        print(f"going on at {newest[0]}")
    run = Run(
        STAGE, config, checkpoint=config.init_from, images=images, fresh=newest is None, keep=unfinished
    )
    if newest is None:
        hold(folder, stack)  # it may be another folder now, the earlier one being set aside
        for old in snapshots.files():
            old.unlink()
    return OpenedRun(run, snapshots, newest[1] if newest else None, found)


def hold(folder: Path, stack: ExitStack) -> None:
    """Be the only process that writes in the folder, until the stack is left."""
    folder.mkdir(parents=True, exist_ok=True)

    def say() -> None:
        print(f"waiting for another process, which is training in {folder}")

    try:
        stack.enter_context(exclusive(folder / "lock", on_wait=say, patience=LONGEST_STOP))
    except TimeoutError:
        raise TimeoutError(
            f"another process is training in {folder}: wait for it, or choose another experiment"
        ) from None


def check_snapshot(path: Path, content: dict, config: TrainConfig, images_found: str) -> None:
    """Raise ValueError unless the snapshot is of this config and of these images."""
    recorded = content.get("config", {})
    if not same_run(recorded, asdict(config)):
        other = [key for key, value in asdict(config).items() if recorded.get(key, value) != value]
        raise ValueError(
            f"{path} is of a training with other parameters ({', '.join(other) or 'an older version'}): move it away, or "
            "start from its weights in another experiment with init_from"
        )
    if content["images_hash"] != images_found:
        raise ValueError(
            f"the images below {config.data} are not those that {path} was trained on: put them back, or train anew with "
            "another experiment or resume=False"
        )
    if content["processes"] != world_size():
        print(f"so far with {content['processes']} processes, from here with {world_size()}")


def first_network(config: TrainConfig, classes: tuple[str, ...]) -> MultiGrain:
    """The network before its first step: random, published, or with the weights of `config.init_from`.

    Its p is the config's; a classifier is taken over where it has the very classes. Raises ValueError for a whitened network.
    """
    torch.manual_seed(config.seed)
    net = get_multigrain(
        config.backbone, p=config.p, num_classes=len(classes), pretrained_backbone=config.pretrained_backbone
    )
    if not config.init_from:
        return net
    path = find_path(config.init_from)
    if stage_folder(config.experiment, STAGE).resolve() in path.resolve().parents:
        raise ValueError(
            f"init_from: {path} is of this very run, which goes on by itself (resume); to start anew from its weights, "
            "choose another experiment"
        )
    source, _ = load_network(path, backbone=config.backbone)
    if source.whitening is not None:
        raise ValueError(f"init_from: {path} is whitened; start from the network before whitening")
    twin = f"{net.twin}.last_linear."  # the NASNets' classifier
    features = {
        key: value
        for key, value in source.features.state_dict().items()
        if not (net.twin and key.startswith(twin))
    }
    net.features.load_state_dict(features, strict=not net.twin)
    same_count = source.classifier.out_features == len(classes)
    if source.classes == classes or (not source.classes and same_count):
        net.copy_to_classifier(source.classifier.weight, source.classifier.bias)
    else:
        print(f"{path} has other classes: its classifier is not taken over")
    return net


def epoch_batches(images: ImageList, config: TrainConfig) -> "RepeatedBatches":
    """The epochs' batches of (index, augmentation seed), this process's share of each; copies stand side by side."""
    sampler = RepeatedAugmentationSampler(
        len(images), config.batch_size, config.repetitions, config.len_factor, seed=config.seed,
        rank=rank(), world_size=world_size(),
    )  # fmt: skip
    return RepeatedBatches(sampler, config.seed)


class RepeatedBatches(SeededBatches):
    """Seeded batches of a repeated-augmentation sampler, a new order and new augmentations every epoch.

    The seeds are those that the samples have in a process alone.
    """

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Choose the epoch, and how many of its batches are passed over."""
        self.epoch, self.skip = epoch, skip
        self.batches.set_epoch(epoch)

    def first_sample(self, number: int, sample: int) -> int:
        start = number * self.batches.batch_size
        length = min(self.batches.batch_size, self.batches.samples - start)
        return start + share(length, self.batches.rank, self.batches.world_size).start


def build_optimizer(net: MultiGrain, loss: JointLoss, config: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum; β has its own learning rate and no weight decay (appendix B)."""
    weights = [w for w in net.parameters() if w.requires_grad]
    beta = [loss.margin_loss.beta]
    groups = [
        {"params": weights, "factor": 1.0, "weight_decay": config.weight_decay},
        {"params": beta, "factor": config.beta_lr, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """lr · gamma for every drop that lies before the 0-based epoch (the released loop drops where epoch > drop).

    With `lr_batch_size`, lr is that of batches of so many samples, and scaled in proportion to `batch_size`.
    """
    scale = config.batch_size / config.lr_batch_size if config.lr_batch_size else 1.0
    return scale * config.lr * config.lr_gamma ** sum(epoch > drop for drop in config.lr_drops)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, epoch: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, epoch) * group["factor"]


# --- The training


NAMES = ("loss", "cross_entropy", "margin", "top1", "top5")  # means over samples, in 0..1 the last two
SHARE = "gradient_share"  # of classification, on the embedding (figure 5)


class Objective(nn.Module):
    """The network and its joint loss as one module, which DistributedDataParallel wraps.

    global_sampling: triplets are drawn in the samples of all processes, instead of in each one's own.
    """

    def __init__(self, net: MultiGrain, loss: JointLoss, *, global_sampling: bool, precision: str):
        super().__init__()
        self.net, self.loss = net, loss
        self.global_sampling, self.precision = global_sampling, precision

    def forward(
        self,
        images: Tensor,
        label: Tensor,
        instance: Tensor,
        *,
        counts: list[int],
        total: int,
        generator: torch.Generator,
        watched: bool,
    ) -> dict[str, Tensor]:
        """images [b,3,H,W], label, instance [b] -> scalars: objective, whose gradients are to be averaged, and those of NAMES.

        counts: b of every process. total: samples of the whole step. watched: SHARE too is wanted.
        """
        with autocast(images.device, self.precision):
            output = self.net(images)
        gather = partial(gathered_rows, counts=counts) if self.global_sampling else None
        losses = self.loss(output, label, instance, generator=generator, gather=gather)
        # Gradients are averaged over W processes, so a share of the step's mean counts W times. The margin loss of a joint
        # batch is the same on every process, and its gradients have come together from all W.
        mine = len(label) * len(counts) / total
        of_classes = mine * losses["cross_entropy"]
        of_instances = (sum(counts) / total if self.global_sampling else mine) * losses["margin"]
        lambda_ = self.loss.lambda_
        ranks = target_ranks(output["classifier_output"].detach(), label)
        found = losses | {f"top{k}": (ranks < k).float().mean() for k in (1, 5)}
        if watched:
            found[SHARE] = gradient_share(output["embedding"], of_classes, of_instances, lambda_)
        return found | {"objective": lambda_ * of_classes + (1 - lambda_) * of_instances}


class Sums:
    """Sums over samples of what the steps give, kept on the device until they are wanted: reading them waits for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.clear()

    def clear(self) -> None:
        self.total = torch.zeros(len(NAMES) + 3, dtype=torch.float64, device=self.device)
        self.losses: dict[int, Tensor] = {}  # of every step, this process's part

    def add(self, step: int, found: dict[str, Tensor], samples: int) -> None:
        """Count what `Objective` found on so many samples of a step."""
        share = found.get(SHARE)
        values = [found[name].detach() for name in NAMES] + [torch.ones_like(found["loss"])]
        values += [share, torch.ones_like(share)] if share is not None else [torch.zeros_like(values[0])] * 2
        self.total += samples * torch.stack(values).double()
        loss = found["loss"].detach()
        self.losses[step] = self.losses[step] + loss if step in self.losses else loss

    def take(self) -> tuple[dict[str, float], dict[int, float]]:
        """({name: sum over the samples of all processes}, {step: its loss, or not a number}) since the last time."""
        steps = list(self.losses)
        losses = torch.stack([*self.losses.values()]).double() if steps else self.total[:0]
        everything = summed(torch.cat([self.total, losses])).tolist()
        self.clear()
        names = (*NAMES, "samples", SHARE, f"samples of {SHARE}")
        return dict(zip(names, everything, strict=False)), dict(
            zip(steps, everything[len(names) :], strict=True)
        )


def means_of(sums: dict[str, float]) -> dict[str, float]:
    """What `Sums.take` gave, added up -> means over the samples."""
    means = {name: sums[name] / sums["samples"] for name in NAMES}
    if sums[f"samples of {SHARE}"]:
        means[SHARE] = sums[SHARE] / sums[f"samples of {SHARE}"]
    return means


@dataclass
class Position:
    """Where a training is: steps so far, the 0-based epoch, its batches so far, and its sums of losses over samples."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)


class Training:
    """Network, loss, optimizer, data and position of a run; every process has one, and all do the same.

    content: of the snapshot to go on from, or None. opened: the run's folder, in the main process only.
    """

    def __init__(
        self,
        config: TrainConfig,
        images: tuple[ImageList, ImageList],
        content: dict | None,
        opened: OpenedRun | None,
        asked_to_stop: Callable[[], bool],
    ):
        self.config, self.opened, self.asked_to_stop = config, opened, asked_to_stop
        self.train_images, self.val_images = images
        self.device = pick_device()
        self.net = place(first_network(config, self.train_images.classes), self.device)
        if config.batch_norm == "sync":
            self.net = with_synchronised_batch_norm(self.net, self.device)
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
        self.recent = Sums(self.device)
        self.since_log: dict[str, float] = {}
        self.last_save = time.monotonic()
        self.monitor = None
        if opened:
            self.monitor = Monitor(opened.run.folder, step=self.position.step, epoch=self.position.epoch)
            print(
                f"{config.backbone}: {len(self.train_images)} images, {len(self.train_images.classes)} classes, "
                f"{len(self.batches)} batches an epoch, {world_size()} x {self.device.type}"
            )

    def in_parallel(self, objective: Objective) -> nn.Module:
        """The objective as it is called: compiled if that is wanted, its gradients averaged over the processes."""
        if self.config.compile:
            self.net.features.compile()
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all batches have one shape
        if not is_joined():
            return objective
        return DistributedDataParallel(
            objective,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Else gradients are laid out anew after the first step, and sums of three or more depend on where one starts.
            find_unused_parameters=self.device.type == "cpu",
        )

    # --- An epoch

    def epoch(self, epoch: int) -> None:
        """Train on the rest of an epoch, validate, leave metrics and a snapshot."""
        config, position = self.config, self.position
        position.epoch = epoch
        set_learning_rate(self.optimizer, config, epoch)
        self.batches.set_epoch(epoch, skip=position.batch)
        self.net.train()
        if config.batch_norm == "frozen":
            freeze_batch_norm(self.net)
        for batch, counts in self.shares(self.bar(f"epoch {epoch + 1}/{config.epochs}")):
            parts = parts_of(counts, config.accumulate)
            if is_enough(parts, config.batch_norm):
                self.step(batch, parts)
                if position.step % config.log_every == 0:
                    self.log()
            position.batch += 1
        self.flush()
        if not position.sums:
            raise UnreadableImageError(
                "an epoch without a single batch to train on: too few readable images in this data"
            )
        self.save()  # a validation may take long
        metrics = means_of(position.sums) | {
            "beta": self.beta.item(),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        metrics |= validate(self.net, self.val_images, config, self.unreadable)
        if self.monitor:
            self.monitor.epoch(epoch + 1, position.step, metrics)
            print(summary(epoch + 1, metrics))
        self.position = Position(step=position.step, epoch=epoch + 1)
        saved = self.save()
        if self.opened:
            link_or_copy(saved, self.opened.run.folder / "checkpoint.pth")

    def bar(self, description: str):
        """The loader, its waiting measured, with a bar in the main process."""
        total = self.batches.skip + len(self.batches)
        loader = self.pace.watch(self.loader)
        return (
            progress(loader, description, total=total, initial=self.batches.skip) if self.monitor else loader
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
            told = exchange(
                [samples, batch is None, error is not None, self.asked_to_stop(), self.wants_to_save()]
            )
            counts, ended, failed, stops, saves = (list(column) for column in zip(*told, strict=True))
            if any(failed):
                reason = next(filter(None, everyones(str(error) if error else "")))
                raise error or OSError(reason)
            if any(stops):
                raise StoppedError(
                    f"stopped as asked; saved at {self.save()}: run the same command again to go on"
                )
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
            with nullcontext() if last or not is_joined() else self.objective.no_sync():
                found = self.objective(
                    *self.on_device(batch, piece), counts=counts, total=total, watched=watched,
                    generator=torch.Generator().manual_seed(seed_of(config.seed, step, drawn_in)),
                )  # fmt: skip
                found["objective"].backward()
            self.recent.add(step + 1, found, counts[rank()])
        self.optimizer.step()
        self.position.step += 1

    def on_device(self, batch: Batch, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
        """images [b,3,H,W], label [b], instance [b] of a piece of the batch."""
        images = batch.image[piece].to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return images, *(x[piece].to(self.device, non_blocking=True) for x in (batch.label, batch.instance))

    # --- What is left on disk

    def flush(self) -> None:
        """Add what the latest steps gave to the sums of the epoch and of the line to come. Raises NonFiniteError."""
        sums, losses = self.recent.take()
        for step, loss in losses.items():
            if not math.isfinite(loss):
                raise NonFiniteError(self.explain_non_finite(f"the loss of step {step}"))
        for into in (self.position.sums, self.since_log):
            for name, value in sums.items():
                into[name] = into.get(name, 0.0) + value

    def log(self) -> None:
        """A line of steps.jsonl."""
        self.flush()
        if self.monitor:
            values = means_of(self.since_log) | {
                "beta": self.beta.item(),
                "lr": self.optimizer.param_groups[0]["lr"],
            }
            self.monitor.step(self.position.step, values | self.pace.take(round(self.since_log["samples"])))
        self.since_log = {}

    def explain_non_finite(self, what: str) -> str:
        """The message for losses or weights that are no numbers: where, what there is to go back to, what to change."""
        config, position = self.config, self.position
        folder = stage_folder(config.experiment, STAGE) / "snapshots"
        good = Snapshots(folder).files()
        kept = f"the last good checkpoint is {good[0]}" if good else "there is no checkpoint yet"
        return (
            f"{what} is not finite (epoch {position.epoch + 1}, batch {position.batch + 1}, lr {config.lr:g}, "
            f"precision {config.precision}); {kept}: start another experiment from it with init_from, a lower lr or "
            "precision=float32"
        )

    def save(self) -> Path | None:
        """Write a snapshot of this moment; its path, in the main process. What fails there is raised by all."""
        self.flush()
        if not all(torch.isfinite(weight).all() for weight in self.objective.parameters()):
            raise NonFiniteError(self.explain_non_finite(f"a weight after step {self.position.step}"))
        path, error = None, None
        if self.opened:
            try:
                path = self.opened.snapshots.save(self.position.step, self.content())
            except SnapshotError as caught:
                error = caught
        [reason, *_] = everyones(str(error) if error else "")
        if reason:
            raise error or SnapshotError(reason)
        self.last_save = time.monotonic()
        return path

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
        for reasons in everyones(self.unreadable.reasons):
            self.unreadable.reasons |= reasons
        if self.opened:
            self.unreadable.report()
            self.monitor.close()
            link_or_copy(self.opened.snapshots.files()[0], checkpoint)
            last = read_metrics(self.config.experiment, STAGE)[-1]
            self.opened.run.results(
                {"top1": last["val_top1"], "top5": last["val_top5"], "beta": last["beta"], "images_hash": self.opened.images_hash}
            )  # fmt: skip
        wait_for_all()
        return checkpoint


def parts_of(counts: list[int], accumulate: int) -> list[list[int]]:
    """The samples of every process -> those in each of the parts over which gradients are accumulated, [parts][W].

    Each process's share is cut into contiguous pieces: `accumulate` parts on one process are as many processes.
    """
    return [[len(range(n)[share(n, k, accumulate)]) for n in counts] for k in range(accumulate)]


def is_enough(parts: list[list[int]], batch_norm: str) -> bool:
    """Whether a step can be made: no piece is empty, and none that takes batch statistics of its own has one sample."""
    smallest = min(map(min, parts))
    return smallest >= 2 or (smallest == 1 and batch_norm != "local" and sum(map(sum, parts)) > 1)


def freeze_batch_norm(net: nn.Module) -> None:
    """Batch norm with the statistics it has, which stay; its scales and shifts are trained on."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def seed_of(*places: int) -> int:
    """A seed for what is drawn at a place of the training: (seed, step, …)."""
    return int(np.random.SeedSequence(places).generate_state(1, np.uint64)[0]) >> 1


def validate(
    net: MultiGrain, images: ImageList, config: TrainConfig, unreadable: UnreadableImages
) -> dict[str, float]:
    """val_top1, val_top5 in 0..1 and val_cross_entropy, at the training resolution, square; by all processes together."""
    copy_buffers_of_main(net)
    logits, labels = classify(
        net, images, size=config.size, crop="square", batch_size=config.batch_size, workers=config.workers,
        precision=config.precision, unreadable=unreadable, description="validation",
    )  # fmt: skip
    ranks = target_ranks(logits, labels)
    cross_entropy = nn.functional.cross_entropy(logits, labels, reduction="sum")
    sums = [(ranks < 1).sum(), (ranks < 5).sum(), cross_entropy, torch.tensor(len(labels))]
    top1, top5, cross_entropy, samples = summed(torch.stack([x.double() for x in sums])).tolist()
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


def trained_network(config: NetworkConfig) -> tuple[MultiGrain, dict]:
    """The network of `config.checkpoint`, the published one, or that of the experiment's 01, and the checkpoint's content.

    On the mini set a missing training is run first. Otherwise FileNotFoundError gives the command that makes it.
    """
    return network_left_by(STAGE, config, run=lambda shared: train(make(TrainConfig, shared)))


def network_left_by(
    stage: str, config: NetworkConfig, *, run: Callable[[dict], object]
) -> tuple[MultiGrain, dict]:
    """The network of `config.checkpoint`, the published one, or else the stage's own, and the checkpoint's content.

    run: makes the stage with its defaults, given the parameters that all stages share; called on the mini set where the
    stage's checkpoint is missing. Otherwise that raises FileNotFoundError with the command that makes it.
    """
    if config.pretrained_backbone:  # published networks pool by averaging: p = 1
        net = get_multigrain(config.backbone, p=1.0, pretrained_backbone=True)
        return place(net.eval(), pick_device()), {}
    own = stage_folder(config.experiment, stage) / "checkpoint.pth"
    if not config.checkpoint and not own.is_file():
        if not is_mini(config.data):
            raise missing_stage(own, stage, config)
        print(f"{own} does not exist: running {NOTEBOOKS[stage]} first, with its defaults")
        run({"experiment": config.experiment, "data": config.data, "workers": config.workers})
    path = find_path(config.checkpoint) if config.checkpoint else own
    net, checkpoint = load_network(path, backbone=config.backbone or None)
    return place(net, pick_device()), checkpoint
