"""Joint training: classes by cross-entropy, instances by the margin loss on repeated augmentations (section 3)."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from mgkit.checkpoints import load_network, save_checkpoint
from mgkit.config import NetworkConfig, TrainConfig, make
from mgkit.datasets import (
    Batch,
    ImageDataset,
    ImageList,
    SeededBatches,
    UnreadableImages,
    batch_loader,
    labelled_images,
)
from mgkit.embed import classify
from mgkit.experiment import NOTEBOOKS, Run, data_root, is_mini, missing_stage, stage_folder
from mgkit.files import find_path
from mgkit.hardware import autocast, pick_device, place
from mgkit.losses import JointLoss
from mgkit.metrics import topk_accuracy
from mgkit.model import MultiGrain, get_multigrain
from mgkit.progress import progress
from mgkit.samplers import RepeatedAugmentationSampler
from mgkit.transforms import train_transform

STAGE = "train"


def train(config: TrainConfig) -> Path:
    """Run a whole training; returns the checkpoint it leaves, outputs/<experiment>/train/checkpoint.pth.

    After every epoch: a line of metrics.jsonl and of the log, and the checkpoint rewritten.
    """
    train_images, val_images = training_data(config)
    run = Run(STAGE, config)
    device = pick_device()
    torch.manual_seed(config.seed)
    net = get_multigrain(
        config.backbone, p=config.p, num_classes=len(train_images.classes), pretrained_backbone=config.pretrained_backbone
    )  # fmt: skip
    net = place(net, device)
    loss = JointLoss(config.lambda_, beta=config.beta, margin=config.margin).to(device)
    optimizer = build_optimizer(net, loss, config)
    batches = epoch_batches(train_images, config)
    dataset = ImageDataset(
        train_images,
        train_transform(
            config.size, config.augmentation, crop_scale=config.crop_scale, mean=net.mean, std=net.std
        ),
    )
    loader = batch_loader(dataset, batches, workers=config.workers, device=device)
    unreadable = UnreadableImages(config.on_unreadable)
    generator = torch.Generator().manual_seed(config.seed)

    checkpoint = run.folder / "checkpoint.pth"
    print(
        f"{config.backbone}: {len(train_images)} images, {len(train_images.classes)} classes, {len(batches)} batches an epoch"
    )
    for epoch in range(config.epochs):
        set_learning_rate(optimizer, config, epoch)
        batches.set_epoch(epoch)
        bar = progress(loader, f"epoch {epoch + 1}/{config.epochs}", total=len(batches))
        metrics = train_epoch(net, loss, optimizer, unreadable.watch(bar), generator, config.precision)
        metrics |= validate(net, val_images, config, unreadable)
        run.log(epoch=epoch + 1, lr=optimizer.param_groups[0]["lr"], **metrics)
        print(summary(epoch + 1, metrics))
        save_checkpoint(
            checkpoint, net, extra={"beta": loss.margin_loss.beta.detach()}, epoch=epoch + 1,
            optimizer=optimizer.state_dict(), classes=list(train_images.classes), size=config.size, p=config.p,
        )  # fmt: skip
    unreadable.report()
    run.results({"top1": metrics["val_top1"], "top5": metrics["val_top5"], "beta": metrics["beta"]})
    return checkpoint


def training_data(config: TrainConfig) -> tuple[ImageList, ImageList]:
    """The (training, validation) images of `config.data`."""
    train_images, val_images = labelled_images(data_root(config.data), val_fraction=config.val_fraction)
    return train_images.with_exif(config.exif), val_images.with_exif(config.exif)


def epoch_batches(images: ImageList, config: TrainConfig) -> "RepeatedBatches":
    """The epochs' batches of (index, augmentation seed): every image `repetitions` times, side by side."""
    sampler = RepeatedAugmentationSampler(
        len(images), config.batch_size, config.repetitions, config.len_factor, seed=config.seed
    )
    return RepeatedBatches(sampler, config.seed)


class RepeatedBatches(SeededBatches):
    """Seeded batches of a repeated-augmentation sampler, a new order and new augmentations every epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.batches.set_epoch(epoch)


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
    """lr · gamma for every drop that lies before the 0-based epoch (the released loop drops where epoch > drop)."""
    return config.lr * config.lr_gamma ** sum(epoch > drop for drop in config.lr_drops)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, epoch: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, epoch) * group["factor"]


def train_epoch(
    net: MultiGrain,
    loss: JointLoss,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    generator: torch.Generator,
    precision: str,
) -> dict[str, float]:
    """One pass over the batches; returns means over the samples of losses and accuracy, and β."""
    net.train()
    totals, samples = {}, 0
    for batch in batches:
        if len(batch.label) == 1:
            continue  # one sample has no batch statistics: batch norm cannot train on it
        parts = train_step(net, loss, optimizer, batch, generator, precision)
        samples += len(batch.label)
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value.detach() * len(batch.label)
    if not samples:
        raise ValueError(
            "an epoch without a single batch of two readable images: nothing can be trained on this data"
        )
    means = {name: float(total) / samples for name, total in totals.items()}
    return means | {"beta": loss.margin_loss.beta.item()}


def train_step(
    net: MultiGrain,
    loss: JointLoss,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    generator: torch.Generator,
    precision: str,
) -> dict[str, Tensor]:
    """One step of SGD; returns scalars loss, cross_entropy, margin, top1."""
    device = net.classifier.weight.device
    images = batch.image.to(device, non_blocking=True, memory_format=torch.channels_last)  # [B,3,H,W]
    label, instance = batch.label.to(device), batch.instance.to(device)
    with autocast(device, precision):
        output = net(images)
    parts = loss(output, label, instance, generator=generator)
    optimizer.zero_grad()
    parts["loss"].backward()
    optimizer.step()
    correct = (output["classifier_output"].argmax(1) == label).float().mean()
    return parts | {"top1": correct}


def validate(
    net: MultiGrain, images: ImageList, config: TrainConfig, unreadable: UnreadableImages
) -> dict[str, float]:
    """val_top1, val_top5 in 0..1 and val_cross_entropy, at the training resolution, square."""
    logits, labels = classify(
        net, images, size=config.size, crop="square", batch_size=config.batch_size, workers=config.workers,
        precision=config.precision, unreadable=unreadable, description="validation",
    )  # fmt: skip
    top1, top5 = topk_accuracy(logits, labels)
    return {
        "val_top1": top1,
        "val_top5": top5,
        "val_cross_entropy": nn.functional.cross_entropy(logits, labels).item(),
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
