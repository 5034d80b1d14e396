"""A small batch of repeated augmentation: pairs, triplets, both losses and their gradients (section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgkit.checkpoints import load_network
from mgkit.config import TrainConfig
from mgkit.data.images import ImageList
from mgkit.data.loader import ImageDataset, SeededBatches
from mgkit.losses import JointLoss, gradient_share
from mgkit.model import MultiGrain
from mgkit.samplers import RepeatedAugmentationSampler
from mgkit.stages.inputs import in_classes_of, training_data
from mgkit.transforms import train_transform

SAMPLES = 12
COPIES = (1, 2, 3, 4, 6)  # divisors of SAMPLES


@dataclass(frozen=True)
class ToyBatch:
    """B samples, N copies of each of B/N images, with their losses.

    copies: N.
    pictures: the samples ([H,W,3] in 0..1 each).
    images: which image each is a copy of ([B]).
    pairs: number of positive pairs, each counted once.
    triplets: number of triplets, one per anchor and positive.
    embedding: [B,C]; cross_entropy and margin (scalars) depend on it.
    """

    copies: int
    pictures: list[np.ndarray]
    images: list[int]
    pairs: int
    triplets: int
    embedding: Tensor
    cross_entropy: Tensor
    margin: Tensor

    def loss(self, lambda_: float) -> float:
        """λ · cross-entropy + (1-λ) · margin loss (equation 5)."""
        return lambda_ * self.cross_entropy.item() + (1 - lambda_) * self.margin.item()

    def share(self, lambda_: float) -> float:
        """Share of cross-entropy in the gradient with respect to the embedding, 0..1 (figure 5)."""
        return gradient_share(self.embedding, self.cross_entropy, self.margin, lambda_).item()

    def counts(self) -> str:
        """One line: samples, pairs and triplets."""
        samples = len(self.pictures)
        return (
            f"N = {self.copies}: {samples} samples are {samples // self.copies} images × {self.copies} "
            f"copies, {self.pairs} positive pairs, {self.triplets} triplets"
        )

    def summary(self, lambda_: float) -> str:
        """One line: the losses and cross-entropy's share of the gradient."""
        cross_entropy, margin = self.cross_entropy.item(), self.margin.item()
        return (
            f"λ = {lambda_:.2f}: cross-entropy {cross_entropy:.3f}, margin loss {margin:.3f}, joint "
            f"{self.loss(lambda_):.3f}; gradient share of cross-entropy {100 * self.share(lambda_):.0f} %"
        )


class ToyBatches:
    """Batches of 12 samples for any N, and their losses for a network in eval mode.

    images: labelled, in the network's classes.
    size, augmentation, crop_scale: as in training (size in pixels).
    beta, margin: of the margin loss; beta as the training left it.
    """

    def __init__(
        self, net: MultiGrain, images: ImageList, *, size: int, augmentation: str = "full",
        crop_scale: float = 0.08, beta: float = 1.2, margin: float = 0.2, seed: int = 0,
    ):  # fmt: skip
        self.net, self.seed = net.eval(), seed
        transform = train_transform(size, augmentation, crop_scale=crop_scale, mean=net.mean, std=net.std)
        self.dataset = ImageDataset(images, transform)
        self.loss = JointLoss(beta=beta, margin=margin).to(net.classifier.weight.device)

    def draw(self, copies: int, *, number: int = 0) -> ToyBatch:
        """Batch `number` with N = copies, without unreadable images.

        Raises ValueError unless copies divides 12, and if no image is readable.
        """
        if SAMPLES % copies:
            raise ValueError(f"copies must divide {SAMPLES}, got {copies}")
        count, seed = len(self.dataset), self.seed
        factor = max(1, SAMPLES / count)
        sampler = RepeatedAugmentationSampler(count, SAMPLES, copies, len_factor=factor, seed=seed)
        sampler.set_epoch(number)
        samples = self.dataset.__getitems__(next(iter(SeededBatches(sampler, seed=seed + number))))
        readable = [sample for sample in samples if len(sample) == 3]
        if not readable:
            raise ValueError(f"none of the {SAMPLES // copies} images of the batch is readable")
        return self.measured(copies, readable)

    def measured(self, copies: int, samples: Sequence[tuple[Tensor, int, int]]) -> ToyBatch:
        """The losses of (image, label, instance) samples, with gradients up to the embedding."""
        device = self.net.classifier.weight.device
        inputs = torch.stack([image for image, _, _ in samples]).to(device)
        label, instance = (torch.tensor([sample[k] for sample in samples], device=device) for k in (1, 2))
        with torch.no_grad():
            pooled = self.net.pooled(inputs)  # [B,3,H,W] -> [B,C]
        output = self.net.head(pooled.requires_grad_())
        found = self.loss(output, label, instance, generator=torch.Generator().manual_seed(self.seed))
        pairs = (instance[:, None] == instance[None, :]).sum().item() - len(samples)  # (anchor, positive)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.net.mean, self.net.std))
        pictures = [(image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy() for image, _, _ in samples]
        losses = found["cross_entropy"], found["margin"]
        return ToyBatch(copies, pictures, instance.tolist(), pairs // 2, pairs, output["embedding"], *losses)


def trained_toys(config: TrainConfig, checkpoint: Path, *, beta: float) -> ToyBatches:
    """Batches with the images, augmentations, network and β of a training."""
    net = load_network(checkpoint)[0]
    images = in_classes_of(net, training_data(config)[0])
    return ToyBatches(
        net, images, size=config.size, augmentation=config.augmentation, crop_scale=config.crop_scale,
        beta=beta, margin=config.margin, seed=config.seed,
    )  # fmt: skip
