"""The training itself: epochs and steps of SGD, by one process or by several that do the same on their shares.

Every random number is drawn from the seed and where in the training it is drawn. So the position in a snapshot is all that
is needed to go on, and a run is a function of its config and the number of processes.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mgkit.config import TrainConfig
from mgkit.data.images import ImageList
from mgkit.data.loader import SeededBatches
from mgkit.losses import JointLoss, gradient_share
from mgkit.machine.device import autocast
from mgkit.machine.distributed import all_gather_rows, all_reduce, rank, world_size
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain
from mgkit.samplers import RepeatedAugmentationSampler, share


def freeze_batch_norm(net: nn.Module) -> None:
    """Batch norm with the statistics it has, which stay; its scales and shifts are trained on."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def seed_of(*places: int) -> int:
    """A seed for what is drawn at a place of the training: (seed, step, …)."""
    return int(np.random.SeedSequence(places).generate_state(1, np.uint64)[0]) >> 1


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
        gather = partial(all_gather_rows, counts=counts) if self.global_sampling else None
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
    """Each step's sums over samples, kept on the device until they are wanted: reading them waits for it.

    Steps stay apart, so that what is added up of them does not depend on when they were taken: at a snapshot, or not.
    """

    def __init__(self):
        self.of_step: dict[int, Tensor] = {}

    def add(self, step: int, found: dict[str, Tensor], samples: int) -> None:
        """Count what `Objective` found on so many samples of a step."""
        share = found.get(SHARE)
        values = [found[name].detach() for name in NAMES] + [torch.ones_like(found["loss"])]
        values += [share, torch.ones_like(share)] if share is not None else [torch.zeros_like(values[0])] * 2
        sums = samples * torch.stack(values).double()
        self.of_step[step] = self.of_step[step] + sums if step in self.of_step else sums

    def take(self) -> dict[int, dict[str, float]]:
        """{step: {name: sum over the samples of all processes}} of the steps since the last time."""
        if not self.of_step:
            return {}
        everything = all_reduce(torch.stack([*self.of_step.values()])).tolist()  # [steps, names]
        steps, self.of_step = list(self.of_step), {}
        names = (*NAMES, "samples", SHARE, f"samples of {SHARE}")
        return {
            step: dict(zip(names, sums, strict=True)) for step, sums in zip(steps, everything, strict=True)
        }


def means_of(sums: dict[str, float]) -> dict[str, float]:
    """What `Sums.take` gave, added up -> means over the samples."""
    means = {name: sums[name] / sums["samples"] for name in NAMES}
    if sums[f"samples of {SHARE}"]:
        means[SHARE] = sums[SHARE] / sums[f"samples of {SHARE}"]
    return means
