"""Triplet sampling and margin loss against one product of the embeddings and pytorch-metric-learning."""

from importlib.util import find_spec

import torch
from measuring import Row, compared
from torch.nn import functional as F

from mgkit.losses import JointLoss

BATCH, COPIES, DIM = 510, 3, 2048


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised embeddings [B,D] with gradient, copies of an image close to each other; their labels [B]."""
    random = torch.Generator().manual_seed(0)
    target = torch.arange(BATCH // COPIES).repeat_interleave(COPIES)
    noise = torch.randn(BATCH, DIM, generator=random)
    rows = torch.randn(1, DIM, generator=random) + torch.randn(BATCH, DIM, generator=random)[target]
    return F.normalize(rows + noise).requires_grad_(), target


def rows(rounds: int = 31) -> list[Row]:
    e, target = embeddings()
    joint, no_classes = JointLoss(lambda_=0.0), torch.zeros(BATCH, 1)  # their cross-entropy takes no time

    def ours() -> None:
        e.grad = None
        output = {"normalized_embedding": e, "classifier_output": no_classes}
        joint(output, torch.zeros_like(target), target)["loss"].backward()

    def product() -> None:
        e.grad = None
        (e @ e.T).backward(torch.ones(BATCH, BATCH))

    stage = f"sampling + margin loss, batch {BATCH}, D={DIM}"
    found = [compared(f"{stage}: one B×B product", ours, product, rounds=rounds, wanted=2.5)]
    if find_spec("pytorch_metric_learning") is None:
        print("pytorch-metric-learning is not installed (the extra `bench`): not compared with it")
        return found
    from pytorch_metric_learning.losses import MarginLoss as TheirLoss
    from pytorch_metric_learning.miners import DistanceWeightedMiner

    miner, their_loss = DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4), TheirLoss()

    def theirs() -> None:
        e.grad = None
        their_loss(e, target, miner(e, target)).backward()

    found.append(compared(f"{stage}: pytorch-metric-learning", ours, theirs, rounds=rounds // 2, wanted=1.0))
    return found
