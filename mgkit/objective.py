"""What a step of training minimises, and what it tells of itself: for a process alone or one of several."""

from functools import partial

import torch
from torch import Tensor, nn

from mgkit.losses import JointLoss, gradient_share
from mgkit.machine.device import autocast
from mgkit.machine.distributed import gathered_rows, summed
from mgkit.metrics import target_ranks
from mgkit.model import MultiGrain

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
        everything = summed(torch.stack([*self.of_step.values()])).tolist()  # [steps, names]
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
