"""The trainings of 07: every arm for every budget and seed, and the grid of learning rates before them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mgkit.claims.arms import ARMS
from mgkit.config import ClaimsConfig, TrainConfig, make

GRID_SEED = 1000  # of the trainings that choose learning rates; the others have smaller seeds


@dataclass(frozen=True)
class Training:
    """One training of an arm.

    budget: epochs
    of_grid: whether it is one of those that choose the arm's learning rate
    """

    arm: str
    budget: int
    seed: int
    lr: float
    of_grid: bool = False

    @property
    def name(self) -> str:
        """Of its files, and with the experiment before it, of its folder in outputs/."""
        rate = f"-lr{self.lr:g}" if self.of_grid else ""
        return f"{self.arm}-{self.budget}epochs{rate}-seed{self.seed}"

    def config(self, config: ClaimsConfig) -> TrainConfig:
        """The parameters of its 01."""
        values = {name: vars(config)[name] for name in SHARED}
        values |= {"experiment": f"{config.experiment}-{self.name}", "epochs": self.budget, "lr": self.lr}
        values |= {"seed": self.seed, "lr_drops": drops(config.lr_drops, self.budget), "keep_checkpoints": 1}
        return make(TrainConfig, values | ARMS[self.arm].settings)


SHARED = (  # parameters of 01 that all arms take from 07
    "data", "workers", "gpus", "precision", "on_unreadable", "exif", "val_fraction", "nnodes", "node_rank",
    "rdzv_endpoint", "backbone", "pretrained_backbone", "backbone_lr", "batch_norm", "size", "batch_size",
    "len_factor", "crop_scale",
)  # fmt: skip


def drops(shares: list[float], budget: int) -> list[int]:
    """The 0-based epochs after which the rate drops, for drops after these shares of the budget (epochs)."""
    return sorted({math.ceil(share * budget) - 1 for share in shares})


def grid(config: ClaimsConfig) -> list[Training]:
    """The trainings that choose each arm's learning rate; none if there is one rate only.

    They have the smallest budget, and a seed of their own.
    """
    if len(config.lrs) == 1:
        return []
    budget = min(config.budgets)
    return [Training(arm, budget, GRID_SEED, lr, of_grid=True) for arm in config.arms for lr in config.lrs]


def trainings(config: ClaimsConfig, rates: Mapping[str, float]) -> Iterator[Training]:
    """The trainings of all arms: small budgets first, so that an early end leaves whole comparisons.

    rates: the learning rate of each arm
    """
    for budget in sorted(config.budgets):
        for seed in config.seeds:
            for arm in config.arms:
                yield Training(arm, budget, seed, rates[arm])


def samples(training: Training, config: ClaimsConfig, images: int) -> int:
    """The samples that a training on so many images sees."""
    return training.budget * int(config.len_factor * images)
