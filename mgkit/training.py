"""The training step of MultiGrain (section 3), with its learning rate, optimizer and batches.

Random numbers depend only on the seed and on where in the training they are drawn. So a resumed training
makes the same steps as one that was never interrupted.
"""

from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mgkit.config import TrainConfig
from mgkit.data.images import ImageList
from mgkit.data.loader import Batch, SeededBatches
from mgkit.losses import JointLoss, gradient_share
from mgkit.machine.device import autocast, to_device, to_float64
from mgkit.machine.distributed import all_gather_rows, rank, world_size
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain
from mgkit.samplers import RepeatedAugmentationSampler, share

LOSSES = ("loss", "cross_entropy", "margin", "top1", "top5")  # means over samples; top1 and top5 in 0..1
SHARE = "gradient_share"  # of the classification loss in the gradient on the embedding (figure 5)
STATISTICS = (*LOSSES, "samples", SHARE, f"samples of {SHARE}")


def train_step(
    objective: "Objective | DistributedDataParallel",
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    parts: list[list[int]],
    *,
    step: int,
    config: TrainConfig,
) -> Tensor:
    """Make one step of SGD on the joint objective, and return its statistics (section 3).

    batch: this process's samples, b images.
    parts: the number of samples of each process in each part, [parts][W], see `parts_of`. Gradients are
        accumulated over the parts.
    step: the number of steps made before this one. With config.seed, it seeds dropout and the negatives.

    Returns sums over this process's samples in the order of STATISTICS: [8], see `statistics`.
    """
    device = next(objective.parameters()).device
    total = sum(map(sum, parts))  # samples of all parts and processes
    with_share = bool(config.gradient_share_every) and step % config.gradient_share_every == 0
    torch.manual_seed(seed_of(config.seed, step, rank()))  # dropout
    sums = 0
    optimizer.zero_grad()
    for k, (counts, piece) in enumerate(zip(parts, pieces(batch, parts), strict=True)):
        images, label, instance = (to_device(x, device) for x in piece)  # [b,3,H,W], [b], [b]
        # With global sampling all processes must draw the same triplets; otherwise each draws its own.
        draw = k if config.global_sampling else rank() * len(parts) + k
        generator = torch.Generator(device).manual_seed(seed_of(config.seed, step, draw))
        accumulates = k < len(parts) - 1 and isinstance(objective, DistributedDataParallel)
        with objective.no_sync() if accumulates else nullcontext():  # the last part averages over processes
            losses = objective(
                images, label, instance,
                counts=counts, total=total, generator=generator, with_share=with_share,
            )  # fmt: skip
            losses["objective"].backward()
        sums = sums + statistics(losses, counts[rank()])
    optimizer.step()
    return sums


class Objective(nn.Module):
    """The network and its joint loss as one module, which DistributedDataParallel can wrap (equation 5).

    global_sampling: draw triplets among the samples of all processes instead of each process's own.
    precision: of the network's forward pass, as in `mgkit.machine.device.autocast`.
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
        with_share: bool,
    ) -> dict[str, Tensor]:
        """Compute the losses of this process's b samples in one part of a batch.

        images: [b,3,H,W].
        label, instance: the class, and which image the sample is a copy of, [b].
        counts: b of every process, [W].
        total: samples of the whole step.
        generator: draws the negatives.
        with_share: whether to add the gradient share of classification.

        Returns scalars: "objective", to call backward on, and those of LOSSES, and SHARE.
        """
        with autocast(images.device, self.precision):
            output = self.net(images)  # embedding [b,C], classifier_output [b,K]
        gather = partial(all_gather_rows, counts=counts) if self.global_sampling else None
        losses = self.loss(output, label, instance, generator=generator, gather=gather)
        # The objective is a mean over the step's samples. Gradients are averaged over the W processes, so
        # each weighs its share of the mean by W. With global sampling, the margin loss is the same on every
        # process, and its gradients are already those of all W. `losses["loss"]` is for the log.
        ours = len(label) * len(counts) / total
        cross_entropy = ours * losses["cross_entropy"]
        margin = (sum(counts) / total if self.global_sampling else ours) * losses["margin"]
        lambda_ = self.loss.lambda_
        losses["objective"] = lambda_ * cross_entropy + (1 - lambda_) * margin
        ranks = target_ranks(output["classifier_output"].detach(), label)  # [b]
        losses |= {f"top{k}": (ranks < k).float().mean() for k in (1, 5)}
        if with_share:
            losses[SHARE] = gradient_share(output["embedding"], cross_entropy, margin, lambda_)
        return losses


# --- Parts of a batch, over which gradients are accumulated


def parts_of(counts: list[int], accumulate: int) -> list[list[int]]:
    """Split the batch into parts: samples of each process, [W] -> those in each part, [accumulate][W].

    Each process's samples are cut into contiguous pieces. So n parts in one process equal n processes.
    """
    return [[len(range(n)[share(n, k, accumulate)]) for n in counts] for k in range(accumulate)]


def pieces(batch: Batch, parts: list[list[int]]) -> zip:
    """Cut this process's images, labels and instances into those of each part."""
    sizes = [counts[rank()] for counts in parts]
    return zip(*(x.split(sizes) for x in (batch.image, batch.label, batch.instance)), strict=True)


def is_enough(parts: list[list[int]], batch_norm: str) -> bool:
    """Whether every process has a sample in every part; two are needed for local batch norm."""
    smallest = min(map(min, parts))
    return smallest >= 2 or (smallest == 1 and batch_norm != "local" and sum(map(sum, parts)) > 1)


# --- Statistics of a step


def statistics(losses: dict[str, Tensor], samples: int) -> Tensor:
    """Turn means over samples, from `Objective`, into sums: [8] as STATISTICS, by `to_float64`."""
    one = torch.ones_like(losses["loss"])
    share = [losses[SHARE], one] if SHARE in losses else [torch.zeros_like(one)] * 2
    means = [*(losses[name].detach() for name in LOSSES), one, *share]
    return samples * to_float64(torch.stack(means))


def means_of(sums: dict[str, float]) -> dict[str, float]:
    """Divide the sums of STATISTICS by their samples: the means of LOSSES, and of SHARE if measured."""
    means = {name: sums[name] / sums["samples"] for name in LOSSES}
    if sums[f"samples of {SHARE}"]:
        means[SHARE] = sums[SHARE] / sums[f"samples of {SHARE}"]
    return means


# --- Learning rate and optimizer


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Return the learning rate of a 0-based epoch: lr · lr_gamma for every drop before it (epoch > drop).

    With `lr_batch_size`, lr is meant for batches of that size, and scaled in proportion to `batch_size`.
    """
    scale = config.batch_size / config.lr_batch_size if config.lr_batch_size else 1.0
    return scale * config.lr * config.lr_gamma ** sum(epoch > drop for drop in config.lr_drops)


def build_optimizer(net: MultiGrain, loss: JointLoss, config: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum, β without weight decay; the backbone and β have factors of lr (appendix B)."""
    head = set(net.classifier.parameters())  # which NASNets also hold in their features
    weights = [w for w in net.parameters() if w.requires_grad]
    decay = config.weight_decay
    groups = [
        {"params": [w for w in weights if w in head], "factor": 1.0, "weight_decay": decay},
        {
            "params": [w for w in weights if w not in head],
            "factor": config.backbone_lr,
            "weight_decay": decay,
        },
        {"params": [loss.margin_loss.beta], "factor": config.beta_lr, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, epoch: int) -> None:
    """Set each parameter group's learning rate to that of the epoch, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, epoch) * group["factor"]


def not_finite_weight(net: nn.Module, beta: nn.Parameter) -> str | None:
    """The name of a trained weight, or of a running statistic, that is not finite; None if all are.

    Frozen parameters do not count: a frozen p may be infinite.
    """
    trained = [(name, w) for name, w in (*net.named_parameters(), ("beta", beta)) if w.requires_grad]
    running = [(name, x) for name, x in net.named_buffers() if name.endswith(("running_mean", "running_var"))]
    return next((name for name, value in trained + running if not value.isfinite().all()), None)


def freeze_batch_norm(net: nn.Module) -> None:
    """Keep the running statistics of batch norm as they are; its scales and shifts are still trained."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


# --- Batches and seeds


def epoch_batches(images: ImageList, config: TrainConfig) -> "RepeatedBatches":
    """This process's share of repeated-augmentation batches, as lists of (image index, augmentation seed)."""
    sampler = RepeatedAugmentationSampler(
        len(images), config.batch_size, config.repetitions, config.len_factor, seed=config.seed,
        rank=rank(), world_size=world_size(),
    )  # fmt: skip
    return RepeatedBatches(sampler, config.seed)


class RepeatedBatches(SeededBatches):
    """Seeded batches of a repeated-augmentation sampler, new ones in every epoch.

    The seed of a sample does not depend on the number of processes.
    """

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Choose the 0-based epoch, and how many of its first batches to skip."""
        self.epoch, self.skip = epoch, skip
        self.batches.set_epoch(epoch)

    def first_sample(self, number: int, sample: int) -> int:
        """The place in the epoch of the first of this process's samples in batch `number`."""
        start = number * self.batches.batch_size
        length = min(self.batches.batch_size, self.batches.samples - start)
        return start + share(length, self.batches.rank, self.batches.world_size).start


def seed_of(*places: int) -> int:
    """Return the seed for what is drawn at a place of the training: (config.seed, step, …)."""
    return int(np.random.SeedSequence(places).generate_state(1, np.uint64)[0]) >> 1
