"""The training itself: epochs and steps of SGD, by one process or by several that do the same on their shares.

Every random number is drawn from the seed and where in the training it is drawn. So the position in a snapshot is all that
is needed to go on, and a run is a function of its config and the number of processes.
"""

import numpy as np
import torch
from torch import nn

from mgkit.config import TrainConfig
from mgkit.data.images import ImageList
from mgkit.data.loader import SeededBatches
from mgkit.losses import JointLoss
from mgkit.machine.distributed import rank, world_size
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
