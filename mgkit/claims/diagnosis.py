"""What a trained embedding looks like: distances of copies and of other images, and its dimensions.

It shows whether an arm trains as it should: triplets that still cost something, and no collapse."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mgkit.config import TrainConfig
from mgkit.data.images import ImageList
from mgkit.data.loader import Batch
from mgkit.engine.loop import training_loader
from mgkit.losses import distance, distance_weighted_probabilities, sample_triplets
from mgkit.machine.device import to_device
from mgkit.machine.timing import timed
from mgkit.model import MultiGrain
from mgkit.training import epoch_batches, seed_of

BATCHES = 20
MOST_KEPT = 2**28  # bytes of batches
DRAWN_BY = (  # parameters of 01 that decide on the batches
    "seed", "epochs", "size", "augmentation", "crop_scale", "batch_size", "repetitions", "len_factor",
)  # fmt: skip


class DrawnBatches:
    """The batches of `diagnosis`, with three copies an image for every arm.

    images: for training

    Arms differ in the loss, so that those of one seed get the same batches. Up to MOST_KEPT bytes, the last
    ones are kept for the next arm.
    """

    def __init__(self, images: ImageList):
        self.images = images
        self.drawn_by: list = []
        self.kept: list[Batch] = []

    def draw(self, net: MultiGrain, config: TrainConfig) -> Sequence[Batch] | islice:
        """BATCHES batches of an epoch that the network was not trained on."""
        config = replace(config, repetitions=max(config.repetitions, 3), workers=0)
        drawn_by = [net.mean, net.std, *(vars(config)[name] for name in DRAWN_BY)]
        if self.kept and drawn_by == self.drawn_by:
            return self.kept
        self.kept = []  # frees their memory
        batches = epoch_batches(self.images, config)
        batches.set_epoch(config.epochs)
        loader = training_loader(self.images, batches, net, config, next(net.parameters()).device)
        drawn = islice(loader, BATCHES)
        if BATCHES * config.batch_size * 3 * config.size**2 * 4 > MOST_KEPT:  # float32
            return drawn
        self.drawn_by, self.kept = drawn_by, list(drawn)
        return self.kept


@timed("passes")
def diagnosis(net: MultiGrain, beta: float, drawn: DrawnBatches, config: TrainConfig) -> dict[str, float]:
    """Distances in batches of repeated augmentation, and the effective rank of the embeddings.

    beta: of the margin loss
    drawn: the batches
    config: of the training

    Returns beta, the median distances of positives and of sampled negatives, the shares of both that still
    cost something (with the margin loss only), the share of anchors whose negatives are drawn uniformly
    because their weights vanish in float32, the median distance of two images, and the effective rank: the
    exponential of the entropy of the covariance's eigenvalues. The network is put in eval mode.
    """
    device, copies = next(net.parameters()).device, max(config.repetitions, 3)
    generator = torch.Generator(device).manual_seed(seed_of(config.seed, config.epochs))
    positive, negative, uniform, every = [], [], [], []
    net.eval()
    for batch in drawn.draw(net, config):
        with torch.no_grad():
            e = net(to_device(batch.image, device))["normalized_embedding"]  # [B,D]
            instance = to_device(batch.instance, device)  # [B]
            anchor, near, far = sample_triplets(e, instance, generator)  # [T] each
            uniform.append(drawn_uniformly(e, instance).cpu())
            positive.append(distance(e[anchor], e[near]).cpu())
            negative.append(distance(e[anchor], e[far]).cpu())
        every.append(e[::copies].cpu())
    positive, negative, uniform, every = map(torch.cat, (positive, negative, uniform, every))
    found = {
        "positive distance": positive.median().item(), "negative distance": negative.median().item(),
        "distance": torch.pdist(every).median().item(), "effective rank": effective_rank(every.numpy()),
        "drawn uniformly": uniform.double().mean().item(),
    }  # fmt: skip
    if config.lambda_ < 1:
        found |= {
            "beta": beta,
            "positives that cost": (positive > beta - config.margin).double().mean().item(),
            "negatives that cost": (negative < beta + config.margin).double().mean().item(),
        }
    return found


def drawn_uniformly(e: Tensor, instance: Tensor) -> Tensor:
    """Whether the negatives of each anchor have equal probabilities, [B] bool; e: [B,D], instance: [B]."""
    probability = distance_weighted_probabilities(e, instance)  # [B,B]
    same = instance[:, None] == instance[None, :]
    return (same | (probability == probability.amax(1, keepdim=True))).all(1)


def effective_rank(rows: np.ndarray) -> float:
    """The exponential of the entropy of the eigenvalues of the covariance of rows [N,D]; at least 1."""
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    total = values.sum()
    if total <= 0:
        return 1.0
    shares = values[values > 0] / total
    return math.exp(-(shares * np.log(shares)).sum())
