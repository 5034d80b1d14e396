"""A small batch of repeated augmentation: its pairs and triplets, both losses, and which of them pulls how much (section 3.3)."""

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
COPIES = (1, 2, 3, 4, 6)  # that divide it


@dataclass(frozen=True)
class ToyBatch:
    """B samples of B/N images, N copies of each side by side, and what the losses make of them.

    copies: N. pictures: B arrays [H,W,3] in 0..1. images: [B], which image each is a copy of. pairs: of copies of one image, each counted once.
    triplets: one negative for each anchor and each of its positives. embedding [B,C]; cross_entropy, margin: scalars that
    depend on it.
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
        """The classes' share of the gradient on the embedding, 0..1 (figure 5)."""
        return gradient_share(self.embedding, self.cross_entropy, self.margin, lambda_).item()

    def counts(self) -> str:
        """One line: what the batch is made of."""
        samples = len(self.pictures)
        return (
            f"N = {self.copies}: {samples} samples are {samples // self.copies} images × {self.copies} copies, "
            f"{self.pairs} positive pairs, {self.triplets} triplets"
        )

    def summary(self, lambda_: float) -> str:
        """One line: the losses and the classes' share of the pull."""
        return (
            f"λ = {lambda_:.2f}: cross-entropy {self.cross_entropy.item():.3f}, margin loss {self.margin.item():.3f}, joint "
            f"{self.loss(lambda_):.3f}; the classes have {100 * self.share(lambda_):.0f} % of the pull on the embedding"
        )


class ToyBatches:
    """Batches of 12 samples for any N, from one network as it is, batch norm frozen: its weights stay.

    images: labelled, in the network's classes. size (px), augmentation, crop_scale: as in training. beta, margin: of the
    margin loss; a trained network's own β, for what it was trained to.
    """

    def __init__(
        self, net: MultiGrain, images: ImageList, *, size: int, augmentation: str = "full", crop_scale: float = 0.08,
        beta: float = 1.2, margin: float = 0.2, seed: int = 0,
    ):  # fmt: skip
        self.net, self.seed = net.eval(), seed
        transform = train_transform(size, augmentation, crop_scale=crop_scale, mean=net.mean, std=net.std)
        self.dataset = ImageDataset(images, transform)
        self.loss = JointLoss(beta=beta, margin=margin).to(net.classifier.weight.device)

    def draw(self, copies: int, *, number: int = 0) -> ToyBatch:
        """Batch `number` of those with so many copies. Raises ValueError unless copies divide 12."""
        if SAMPLES % copies:
            raise ValueError(f"copies must divide {SAMPLES}, got {copies}")
        count = len(self.dataset)
        sampler = RepeatedAugmentationSampler(
            count, SAMPLES, copies, len_factor=max(1, SAMPLES / count), seed=self.seed
        )
        sampler.set_epoch(number)
        samples = self.dataset.__getitems__(next(iter(SeededBatches(sampler, seed=self.seed + number))))
        return self.measured(copies, [sample for sample in samples if len(sample) == 3])  # the readable ones

    def measured(self, copies: int, samples: Sequence[tuple[Tensor, int, int]]) -> ToyBatch:
        """The losses on (image, label, instance) samples; gradients reach back to the embedding and no further."""
        device = self.net.classifier.weight.device
        inputs = torch.stack([image for image, _, _ in samples]).to(device)
        label, instance = (torch.tensor([sample[k] for sample in samples], device=device) for k in (1, 2))
        with torch.no_grad():
            pooled = self.net.pooled(inputs)  # [B,3,H,W] -> [B,C]
        output = self.net.head(pooled.requires_grad_())
        found = self.loss(output, label, instance, generator=torch.Generator().manual_seed(self.seed))
        ordered = (instance[:, None] == instance[None, :]).sum().item() - len(samples)  # (anchor, positive)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.net.mean, self.net.std))
        pictures = [(image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy() for image, _, _ in samples]
        return ToyBatch(
            copies, pictures, instance.tolist(), ordered // 2, ordered, output["embedding"], found["cross_entropy"], found["margin"]
        )  # fmt: skip


def trained_toys(config: TrainConfig, checkpoint: Path, *, beta: float) -> ToyBatches:
    """Batches of a training's images and augmentations, for the network and the β that it left."""
    net = load_network(checkpoint)[0]
    images = in_classes_of(net, training_data(config)[0])
    return ToyBatches(
        net, images, size=config.size, augmentation=config.augmentation, crop_scale=config.crop_scale, beta=beta,
        margin=config.margin, seed=config.seed,
    )  # fmt: skip
